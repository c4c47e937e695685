"""The table of the phases that ran, from the trace that an engine may write."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNNAMED = "between phases"
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
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def human(num_bytes: int) -> str:
    """Bytes with a unit of 1024s and three digits or so: 1536 gives "1.50 KiB"."""
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{num_bytes} B" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
