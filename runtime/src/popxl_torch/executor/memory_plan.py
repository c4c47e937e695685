"""The JSON file that tells where a session's weights are kept, and what its runs write:

    {"version": 1, "device": str, "weights": "mapped", "read" or "pinned", "budget_bytes": int,
     "phases": [{"name": str, "slabs": int, "bytes": int,
                 "resident_slabs": int, "resident_bytes": int,
                 "streamed_slabs": int, "streamed_bytes": int, "mapped_bytes": int}],
     "storages": {str: int},
     "stored": [{"name": str, "slabs": int, "bytes": int,
                 "resident_slabs": int, "resident_bytes": int}],
     "slots": int, "slot_bytes": int,
     "process_bytes": int, "activation_bytes": int, "stored_bytes": int, "scratch_bytes": int,
     "peak_bytes": int}

A budget of 0 is none. Phases are name scopes, in the order in which their weights are loaded first.
``resident`` weights are in the session's own memory throughout, ``streamed`` ones pass through the
slots, ``mapped`` ones are used where they lie, in files or in the host's arrays, and are in no
budget: these are all weights that are mapped, tables of which only rows are read, and weights that
are no files'. ``storages`` are the bytes of all weights by their dtype or quantised format,
``stored`` the remote buffers that runs write, such as keys and values, by the name scope that
writes them first; those that are not resident lie in a file, or for a GPU in the host's memory
(executor/spill.py), from which a GPU's runs copy what they read: that is among the activations.
``stored_bytes`` are the resident ones; ``process_bytes`` what the process had before;
``scratch_bytes`` what is set aside for all that cannot be planned: workspaces of kernels, plans.
``peak_bytes`` is all that is in the device's memory at a time.

A GPU has memory of its own. No weights are ``mapped`` there but tables that would not fit beside
everything else; there is always a budget, what is free if none was given; and activations count
twice where runs are recorded, as recordings have memory of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popxl_torch.executor.slabs import Entry
from popxl_torch.ir.records import Spec
from popxl_torch.passes.find_slabs import LoadedTogether
from popxl_torch.plan.memory import spec_bytes
from popxl_torch.plan.residency import Residency, Slab


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes that a session needs besides weights and what runs write: see the file's format."""

    process: int
    activations: int
    scratch: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.process + self.activations + self.scratch


def stored_as(array: Any, spec: Spec) -> tuple[str, int]:
    """How a host's array is stored in remote memory: format or dtype, and bytes."""
    storage = getattr(array, "popxl_storage", None)
    if storage is not None:
        parts = (storage[key] for key in ("codes", "scales"))
        return storage["format"], sum(part.nbytes for part in parts if part is not None)
    copies = array.shape[0] if len(array.shape) > len(spec.shape) else 1
    return spec.dtype, copies * spec_bytes(spec)


def storage_bytes(arrays: Mapping[Entry, Any]) -> dict[str, int]:
    """The file's ``storages``."""
    found: dict[str, int] = {}
    for (buffer, _), array in arrays.items():
        kind, size = stored_as(array, buffer.spec)
        found[kind] = found.get(kind, 0) + size
    return found


def phase_rows(
    groups: Iterable[LoadedTogether],
    arrays: Mapping[Entry, Any],
    slabs: Sequence[Slab],
    residency: Residency,
) -> list[dict[str, Any]]:
    """The file's ``phases``."""
    sizes = {entry: stored_as(array, entry[0].spec)[1] for entry, array in arrays.items()}
    phases: dict[str, dict[str, Any]] = {}
    keys = ("slabs", "bytes", "resident_slabs", "resident_bytes", "streamed_slabs")
    for group in groups:
        row = phases.setdefault(
            group.phase,
            {"name": group.phase} | dict.fromkeys((*keys, "streamed_bytes", "mapped_bytes"), 0),
        )
        numbers = {number for buffer, number in sizes if buffer in group.buffers}
        row["slabs"] += len(numbers)
        total = sum(n for (buffer, _), n in sizes.items() if buffer in group.buffers)
        row["bytes"] += total
        row["mapped_bytes"] += total
    for number, slab in enumerate(slabs):
        row, kind = phases[slab.phase], "resident" if number in residency.resident else "streamed"
        row[f"{kind}_slabs"] += 1
        row[f"{kind}_bytes"] += slab.num_bytes
        row["mapped_bytes"] -= sum(sizes[entry] for entry in slab.entries)
    return list(phases.values())


def stored_rows(stored: Sequence[Slab], residency: Residency) -> list[dict[str, Any]]:
    """The file's ``stored``."""
    rows: dict[str, dict[str, Any]] = {}
    keys = ("slabs", "bytes", "resident_slabs", "resident_bytes")
    for number, slab in enumerate(stored):
        row = rows.setdefault(slab.phase, {"name": slab.phase} | dict.fromkeys(keys, 0))
        for kind in ("", "resident_") if number in residency.stored else ("",):
            row[f"{kind}slabs"] += 1
            row[f"{kind}bytes"] += slab.num_bytes
    return list(rows.values())


def totals(stored: Sequence[Slab], residency: Residency, fixed: Fixed) -> dict[str, int]:
    """The file's last lines."""
    return {
        "slots": residency.slots,
        "slot_bytes": residency.slot_bytes,
        "process_bytes": fixed.process,
        "activation_bytes": fixed.activations,
        "stored_bytes": sum(stored[number].num_bytes for number in residency.stored),
        "scratch_bytes": fixed.scratch,
        "peak_bytes": residency.peak_bytes,
    }


def write_report(path: str, content: Mapping[str, Any]) -> None:
    """Write the file under a temporary name, then put it in place."""
    temporary = Path(f"{path}.{os.getpid()}.part")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)
