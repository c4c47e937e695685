"""Tables of the phases that ran and of the memory they take, from what an engine may write."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNNAMED = "between phases"
_NO_PLAN = "no table of memory: this engine writes no plan"
_PLAN_COLUMNS = (
    *("slabs", "bytes", "mapped_bytes"),
    *("resident_slabs", "resident_bytes", "streamed_slabs", "streamed_bytes"),
)
_NO_TRACE = "no table of phases: this engine writes no trace"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhaseRow:
    """What one phase did since the session began.

    Attributes:
        name: the phase; "between phases" for what belongs to none.
        runs: how often it was called, iterations of loops included.
        loaded_bytes: weights that it loaded from remote buffers.
        ms: time that it took.
    """

    name: str
    runs: int
    loaded_bytes: int
    ms: float


def read_trace(path: Path | None) -> list[PhaseRow] | None:
    """The phases of a trace file in the order they first ran.

    Returns:
        None where there is no file, or one of a form that this program does not know.
    """
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            PhaseRow(
                str(region["name"]) or _UNNAMED,
                int(region["runs"]),
                int(region["loaded_bytes"]),
                float(region["ms"]),
            )
            for region in content["regions"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: not a trace of a known form: %r", path, error)
        return None


def phase_table(path: Path | None) -> str:
    """The table as text: phase, runs, weights loaded in bytes, milliseconds, and their sums.

    Args:
        path: the engine's trace file; None or a missing file gives a line that says so.
    """
    rows = read_trace(path)
    if not rows:
        return _NO_TRACE
    total = PhaseRow(
        "total",
        sum(row.runs for row in rows),
        sum(row.loaded_bytes for row in rows),
        sum(row.ms for row in rows),
    )
    cells = [("phase", "runs", "weights loaded", "bytes", "ms")]
    cells += [
        (row.name, f"{row.runs:,}", human(row.loaded_bytes), f"{row.loaded_bytes:,}", _ms(row.ms))
        for row in [*rows, total]
    ]
    head, rule, *lines = _aligned(cells)
    return "\n".join([head, rule, *lines[:-1], rule, lines[-1]])


def memory_table(path: Path | None) -> str:
    """What is kept where, as text: for each phase its weights, then all that takes memory.

    Args:
        path: the engine's memory plan; None or a missing file gives a line that says so.
    """
    if path is None or not path.is_file():
        return _NO_PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        storages = (f"{name} {human(size)}" for name, size in plan["storages"].items())
        weights = [*_phase_lines(plan["phases"]), "stored as: " + ", ".join(storages)]
        return "\n".join([*weights, "", *_memory_lines(plan)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: not a memory plan of a known form: %r", path, error)
        return _NO_PLAN


def _phase_lines(phases: Sequence[Mapping[str, Any]]) -> list[str]:
    cells: list[tuple[str, ...]] = [("weights", "parts", "all", "resident", "streamed", "mapped")]
    sums = {key: sum(phase[key] for phase in phases) for key in _PLAN_COLUMNS}
    for phase in [*phases, {"name": "total"} | sums]:
        kinds = [
            f"{phase[f'{kind}_slabs']} = {human(phase[f'{kind}_bytes'])}"
            if phase[f"{kind}_slabs"]
            else "-"
            for kind in ("resident", "streamed")
        ]
        mapped = human(phase["mapped_bytes"]) if phase["mapped_bytes"] else "-"
        row = (phase["name"] or _UNNAMED, str(phase["slabs"]), human(phase["bytes"]))
        cells.append((*row, *kinds, mapped))
    return _aligned(cells)


def _memory_lines(plan: Mapping[str, Any]) -> list[str]:
    resident = sum(phase["resident_bytes"] for phase in plan["phases"])
    rows = [
        ("resident weights", resident),
        (f"buffers ({plan['slots']} slots)", plan["slots"] * plan["slot_bytes"]),
        *((_stored_name(row), row["resident_bytes"]) for row in plan["stored"]),
        ("activations", plan["activation_bytes"]),
        ("scratch", plan["scratch_bytes"]),
        ("process", plan["process_bytes"]),
        ("peak", plan["peak_bytes"]),
    ]
    budget = plan["budget_bytes"]
    cells = [("memory", "bytes", ""), *((name, f"{n:,}", human(n)) for name, n in rows)]
    limit = f"{budget:,}" if budget else "none"
    table = _aligned([*cells, ("budget", limit, human(budget) if budget else "")])
    return [*table, *map(_where_stored, plan["stored"])]


def _stored_name(row: Mapping[str, Any]) -> str:
    return "keys and values" if row["name"] == "decoder" else "pictures"


def _where_stored(row: Mapping[str, Any]) -> str:
    """Where keys and values are, or whatever else runs write."""
    off = row["slabs"] - row["resident_slabs"]
    return f"{_stored_name(row)}: " + ", ".join(
        f"{count} of {row['slabs']} {where} ({human(size)})"
        for count, size, where in (
            (row["resident_slabs"], row["resident_bytes"], "on the device"),
            (off, row["bytes"] - row["resident_bytes"], "off it"),
        )
        if count
    )


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the first to the left, with a rule below the first line."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def human(num_bytes: int) -> str:
    """Bytes with a unit of 1024s and three digits or so: 1536 gives "1.50 KiB"."""
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{num_bytes} B" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
