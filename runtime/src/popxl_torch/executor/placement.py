"""Where a session's weights are kept: the plan, and the JSON file that tells of it:

    {"version": 1, "device": str, "weights": "mapped" or "read", "budget_bytes": int,
     "phases": [{"name": str, "slabs": int, "bytes": int,
                 "resident_slabs": int, "resident_bytes": int,
                 "streamed_slabs": int, "streamed_bytes": int, "mapped_bytes": int}],
     "slots": int, "slot_bytes": int,
     "process_bytes": int, "activation_bytes": int, "stored_bytes": int, "scratch_bytes": int,
     "peak_bytes": int}

A budget of 0 is none. Phases are name scopes, in the order in which their weights are loaded first.
``resident`` weights are in the session's own memory throughout, ``streamed`` ones pass through the
slots, ``mapped`` ones are used where they lie, in files or in the host's arrays, and are in no
budget: these are all weights that are mapped, tables of which only rows are read, and weights that
are no files'. ``stored_bytes`` are the remote buffers that runs write, such as keys and values;
``process_bytes`` what the process had before; ``scratch_bytes`` what is set aside for all that
cannot be planned: workspaces of kernels, plans. ``peak_bytes`` is all that is in the device's
memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from popxl_torch.executor.file_ranges import MappedFiles
from popxl_torch.executor.planner import Planner
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.streaming import Entry, FileSlab, Streamer
from popxl_torch.ir.errors import OutOfMemoryException
from popxl_torch.ir.records import Buffer, Value
from popxl_torch.passes.find_slabs import LoadedTogether
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.plan.memory import spec_bytes
from popxl_torch.plan.residency import BudgetError, Residency, Slab, plan_residency
from popxl_torch.settings import AUTO, Settings


class Placer:
    """Plans where the weights of a session are kept, and has them read where that is asked for."""

    def __init__(
        self, planner: Planner, remote: RemoteStore, settings: Settings, device: str
    ) -> None:
        """``device`` is the session's.

        Raises:
            NotImplementedError: a budget for a device that has memory of its own.
        """
        if settings.device_memory and device.startswith("cuda"):
            raise NotImplementedError(
                f"device_memory is kept on CPUs only so far, not on {device}; leave it out"
            )
        self.planner = planner
        self.remote = remote
        self.settings = settings
        self.device = device
        wanted = settings.device_memory or settings.memory_plan or settings.weights == "read"
        self.active = bool(wanted)

    def plan_specs(self, variables: Iterable[Value], varying: Varying) -> None:
        """Plan by what variables say of themselves: their weights are never there.

        Raises:
            OutOfMemoryException: the budget is too small.
        """
        sizes = variable_bytes(variables, self.remote.backend.replicas)
        slabs = loaded_slabs(self.planner.slabs(), sizes) if self.settings.weights == "read" else []
        self._plan(slabs, sizes, varying)

    def place(self, arrays: Iterable[object], varying: Varying) -> None:
        """Plan for the weights that are there now.

        Args:
            arrays: the host's arrays that remote memory is made of.
            varying: what differs between replicas.

        Raises:
            OutOfMemoryException: the budget is too small.
            OSError: a file cannot be read.
        """
        self.release()
        sizes = entry_bytes(self.remote)
        slabs: list[Slab] = []
        files: list[FileSlab] = []
        if self.settings.weights == "read":
            slabs, files = file_slabs(
                loaded_slabs(self.planner.slabs(), sizes), self.remote, mapped_files(arrays)
            )
        residency = self._plan(slabs, sizes, varying)
        if files:
            self.remote.streamer = Streamer(
                files,
                residency.resident,
                residency.slots,
                self.settings.prefetch,
                self.remote.backend,
                self.remote.trace,
            )

    def release(self) -> None:
        """Let go of memory, files and threads."""
        if self.remote.streamer is not None:
            self.remote.streamer.close()
            self.remote.streamer = None

    def _plan(self, slabs: list[Slab], sizes: Mapping[Entry, int], varying: Varying) -> Residency:
        fixed = Fixed(
            anonymous_bytes(),
            self.planner.activation_bytes(varying),
            stored_bytes(self.remote.stored, self.remote.backend.replicas),
            SCRATCH_BYTES,
        )
        residency = plan(slabs, fixed, self.settings)
        if self.settings.memory_plan:
            groups = self.planner.slabs()
            content = report(groups, sizes, slabs, residency, fixed, self.settings, self.device)
            write_report(self.settings.memory_plan, content)
        return residency


SCRATCH_BYTES = 96 << 20
"""Twice what a model of 6 billion parameters was seen to take."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes that a session needs besides weights: see the file's format."""

    process: int
    activations: int
    stored: int
    scratch: int


def variable_bytes(variables: Iterable[Value], replicas: int) -> dict[Entry, int]:
    """Bytes of the entries of remote variables, as their specs say."""
    sizes = {}
    for data in (value.data for value in variables):
        if data.buffer is not None:
            copies = replicas if data.num_groups > 1 else 1
            sizes[data.buffer, data.entry] = copies * spec_bytes(data.buffer.spec)
    return sizes


def entry_bytes(remote: RemoteStore) -> dict[Entry, int]:
    """Bytes of the entries that a session has, as they are stored."""
    return {entry: remote.backend.nbytes(tensor) for entry, tensor in remote.entries.items()}


def loaded_slabs(groups: Iterable[LoadedTogether], sizes: Mapping[Entry, int]) -> list[Slab]:
    """The slabs of a program, in the order of execution, but for tables of which rows are read."""
    slabs = []
    for group in groups:
        for number in range(0 if group.gathered else max(b.entries for b in group.buffers)):
            entries = [(b, number) for b in group.buffers if (b, number) in sizes]
            if entries:
                total = sum(sizes[entry] for entry in entries)
                slabs.append(Slab(group.phase, total, group.places, tuple(entries)))
    return slabs


def mapped_files(arrays: Iterable[object]) -> MappedFiles:
    """The files that arrays are views of."""
    files = MappedFiles()
    for array in arrays:
        files.add(array)
    return files


def file_slabs(
    slabs: Iterable[Slab], remote: RemoteStore, files: MappedFiles
) -> tuple[list[Slab], list[FileSlab]]:
    """What of the slabs are views of files, with the memory that they take if they are read."""
    found = []
    for slab in slabs:
        ranges = {}
        for entry in slab.entries:
            parts = [files.find(array) for array in remote.backend.arrays(remote.get(*entry))]
            if None not in parts:
                ranges[entry] = [part for part in parts if part is not None]
        if ranges:
            tensors = {entry: remote.get(*entry) for entry in ranges}
            found.append((slab, FileSlab(tensors, ranges)))
    summaries = [
        replace(slab, num_bytes=file.num_bytes, entries=tuple(file.tensors)) for slab, file in found
    ]
    return summaries, [file for _, file in found]


def stored_bytes(stored: Iterable[Buffer], replicas: int) -> int:
    """Bytes of the remote buffers that runs write, if replicas differ."""
    return sum(spec_bytes(b.spec) * b.entries * replicas for b in stored)


def plan(slabs: Sequence[Slab], fixed: Fixed, settings: Settings) -> Residency:
    """The plan within the budget of the settings.

    Raises:
        OutOfMemoryException: the budget is too small.
    """
    needs = {
        "the process": fixed.process,
        "activations": fixed.activations,
        "stored buffers": fixed.stored,
        "scratch": fixed.scratch,
    }
    try:
        return plan_residency(slabs, needs, budget_of(settings, fixed.process), settings.prefetch)
    except BudgetError as error:
        raise OutOfMemoryException(str(error)) from None


def budget_of(settings: Settings, process: int) -> int:
    """The budget in bytes; 0 for none."""
    auto = settings.device_memory == AUTO
    return process + _available_bytes() if auto else settings.device_memory


def anonymous_bytes() -> int:
    """Anonymous memory of this process; 0 where the system does not tell."""
    return _kibibytes("/proc/self/status", "RssAnon:")


def _available_bytes() -> int:
    """Memory that may be taken: what the system has, within the limit of the control group."""
    free = _kibibytes("/proc/meminfo", "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def _kibibytes(path: str, key: str) -> int:
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    return 0


def report(
    groups: Iterable[LoadedTogether],
    sizes: Mapping[Entry, int],
    slabs: Sequence[Slab],
    residency: Residency,
    fixed: Fixed,
    settings: Settings,
    device: str,
) -> dict[str, Any]:
    """The contents of the file."""
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
    return {
        "version": 1,
        "device": device,
        "weights": settings.weights,
        "budget_bytes": budget_of(settings, fixed.process),
        "phases": list(phases.values()),
        "slots": residency.slots,
        "slot_bytes": residency.slot_bytes,
        "process_bytes": fixed.process,
        "activation_bytes": fixed.activations,
        "stored_bytes": fixed.stored,
        "scratch_bytes": fixed.scratch,
        "peak_bytes": residency.peak_bytes,
    }


def write_report(path: str, content: Mapping[str, Any]) -> None:
    """Write the file under a temporary name, then put it in place."""
    temporary = Path(f"{path}.{os.getpid()}.part")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)
