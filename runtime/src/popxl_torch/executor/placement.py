"""Where a session's weights are kept: the plan, and the JSON file that tells of it:

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
writes them first; those that are not resident lie in a file (executor/spill.py). ``stored_bytes``
are the resident ones; ``process_bytes`` what the process had before; ``scratch_bytes`` what is set
aside for all that cannot be planned: workspaces of kernels, plans. ``peak_bytes`` is all that is in
the device's memory at a time.

A GPU has memory of its own, in which all that runs write stays. No weights are ``mapped`` there but
tables that would not fit beside everything else; there is always a budget, what is free if none was
given; and activations count twice where runs are recorded, as recordings have memory of their own.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.device_slots import DeviceSlots
from popxl_torch.executor.file_ranges import MappedFiles, memory_range
from popxl_torch.executor.planner import Planner
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.spill import Spill
from popxl_torch.executor.streaming import Entry, HostSlab, HostSlots, SlotMaker, Streamer
from popxl_torch.ir.errors import OutOfMemoryException
from popxl_torch.ir.records import Buffer, Spec
from popxl_torch.passes.find_slabs import LoadedTogether
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.plan.memory import spec_bytes
from popxl_torch.plan.residency import BudgetError, Residency, Slab, plan_residency
from popxl_torch.settings import AUTO, Settings

_LOG = logging.getLogger("popxl_torch")


class Placer:
    """Plans where the weights of a session are kept, and has them brought there."""

    def __init__(
        self, planner: Planner, remote: RemoteStore, settings: Settings, device: str
    ) -> None:
        """``device`` is the session's."""
        self.planner = planner
        self.remote = remote
        self.settings = settings
        self.device = device
        self._backend = remote.backend
        self._own_memory = not remote.backend.shares_host
        self._brings = self._own_memory or settings.weights != "mapped"
        self._limits = False
        self.active = self._brings or bool(settings.device_memory or settings.memory_plan)

    def place(self, arrays: Mapping[Entry, Any], varying: Varying) -> None:
        """Plan for the weights that are there now; where nothing is computed, nothing is brought.

        Args:
            arrays: the host's, that remote memory is made of.
            varying: what differs between replicas.

        Raises:
            OutOfMemoryException: the budget is too small.
            OSError: a file cannot be read.
        """
        self.release()
        slabs, tables = self._loaded({e: stored_as(a, e[0].spec)[1] for e, a in arrays.items()})
        if self.settings.backend == "null":
            self._plan(slabs, tables, arrays, varying)
            return
        files = mapped_files(arrays.values())
        on_host = host_slabs(slabs, self.remote, files, self._own_memory)
        rows = host_slabs(tables, self.remote, files, self._own_memory)
        chosen, residency = self._plan([*on_host], [*rows], arrays, varying)
        self._spill(residency)
        if self._own_memory and self.settings.device_memory > 0:
            self._backend.limit_memory(self.settings.device_memory)
            self._limits = True
        if chosen:
            brought = [{**on_host, **rows}[slab] for slab in chosen]
            self.remote.streamer = Streamer(
                brought,
                residency.resident,
                residency.slots,
                self.settings.prefetch,
                self._slot_maker(brought, residency),
                self._backend,
                self.remote.trace,
            )

    def release(self) -> None:
        """Let go of memory, files and threads."""
        if self.remote.streamer is not None:
            self.remote.streamer.close()
            self.remote.streamer = None
        if self._limits:
            self._backend.limit_memory(0)
            self._limits = False

    def _loaded(self, sizes: Mapping[Entry, int]) -> tuple[list[Slab], list[Slab]]:
        """What is brought: slabs, and tables of which rows are used."""
        if not self._brings:
            return [], []
        groups = self.planner.slabs()
        tables = [group for group in groups if group.gathered] if self._own_memory else []
        slabs = [group for group in groups if not group.gathered]
        return loaded_slabs(slabs, sizes), loaded_slabs(tables, sizes)

    def _plan(
        self, slabs: list[Slab], tables: list[Slab], arrays: Mapping[Entry, Any], varying: Varying
    ) -> tuple[list[Slab], Residency]:
        """The slabs that are brought, and which of them stay. Tables do if there is room for all;
        else their rows are read on the host."""
        used = self._backend.memory_used() if self._own_memory else anonymous_bytes()
        fixed = self._fixed(varying, used)
        budget = budget_of(self.settings, used, self._backend)
        whole = fixed.total + sum(slab.num_bytes for slab in (*slabs, *tables))
        chosen = slabs if budget and whole > budget else [*slabs, *tables]
        movable = [] if self._own_memory else self._stored
        residency = plan(chosen, movable, fixed, budget, self.settings.prefetch)
        if self._own_memory:
            residency = replace(residency, stored=tuple(range(len(self._stored))))
            self.remote.resident = _wholly(chosen, residency, arrays)
            self.remote.tables = frozenset(
                buffer for slab in tables if slab not in chosen for buffer, _ in slab.entries
            )
        if self.settings.memory_plan:
            about = {"version": 1, "device": self.device, "weights": self.settings.weights}
            content = about | {
                "budget_bytes": budget,
                "phases": phase_rows(self.planner.slabs(), arrays, chosen, residency),
                "storages": storage_bytes(arrays),
                "stored": stored_rows(self._stored, residency),
            }
            content |= totals(self._stored, residency, fixed)
            write_report(self.settings.memory_plan, content)
        return chosen, residency

    def _fixed(self, varying: Varying, used: int) -> Fixed:
        activations = self.planner.activation_bytes(varying, not self._own_memory)
        if not self._own_memory:
            return Fixed(used, activations, 0, SCRATCH_BYTES)
        if self.settings.cuda_graphs:
            activations *= 2
        # Stored buffers may be there from before.
        kept = sum(self._backend.nbytes(self.remote.get(*entry)) for entry in self.remote.owned)
        stored = sum(slab.num_bytes for slab in self._stored)
        return Fixed(max(used - kept, 0), activations, stored, DEVICE_SCRATCH_BYTES)

    def _spill(self, residency: Residency) -> None:
        """Have a file for what runs store to and is not to stay in memory."""
        sizes = stored_bytes(self.remote.stored, self._backend.replicas)
        for number in residency.stored:
            for entry in self._stored[number].entries:
                del sizes[entry]
        if sizes.keys() != (self.remote.spill.sizes.keys() if self.remote.spill else set()):
            self.remote.spill_to(Spill(sizes) if sizes else None)

    @functools.cached_property
    def _stored(self) -> list[Slab]:
        """What runs store to, in the order of execution."""
        sizes = stored_bytes(self.remote.stored, self._backend.replicas)
        return loaded_slabs(self.planner.stored(), sizes)

    def _slot_maker(self, slabs: list[HostSlab], residency: Residency) -> SlotMaker:
        if not self._own_memory:
            return HostSlots(slabs)
        streamed = [slab for n, slab in enumerate(slabs) if n not in residency.resident]
        pinned = [s for s in streamed if self.settings.weights == "pinned" or not s.file_bytes]
        size, free = sum(slab.num_bytes for slab in pinned), available_bytes()
        if size > free - free // 8:
            _LOG.warning("%d MiB of weights are not pinned, as the host has %d MiB free: they pass"
                         " through a small pinned ring", size >> 20, free >> 20)  # fmt: skip
            pinned = []
        return DeviceSlots(self._backend.link(), slabs, pinned, self.settings.weights == "read")


SCRATCH_BYTES = 192 << 20
"""Workspaces of products and plans. A model of 6 billion parameters was seen to take 107 MiB for a
prompt of 2048 positions; tiles of quantised matrices are 64 MiB more."""


DEVICE_SCRATCH_BYTES = 256 << 20
"""On a GPU: workspaces of its libraries (up to 32 MiB for each of two streams), what kernels hold
besides their results, rounding of the allocator. An estimate: nothing was measured."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes that a session needs besides weights: see the file's format. ``stored`` are those that
    cannot be elsewhere."""

    process: int
    activations: int
    stored: int
    scratch: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.process + self.activations + self.stored + self.scratch


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


def loaded_slabs(groups: Iterable[LoadedTogether], sizes: Mapping[Entry, int]) -> list[Slab]:
    """The slabs of groups of buffers, in the order of execution."""
    slabs = []
    for group in groups:
        for number in range(max(b.entries for b in group.buffers)):
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


def host_slabs(
    slabs: Iterable[Slab], remote: RemoteStore, files: MappedFiles, from_memory: bool
) -> dict[Slab, HostSlab]:
    """What of the slabs are views of files, or of the host's memory where that counts too, with the
    memory that they take if they are brought to the device.

    Other arrays are used where they are, or sent for each load: those that a run made, and those
    whose strides leave out most of what they span.
    """
    found = {}
    for slab in slabs:
        ranges = {}
        for entry in slab.entries:
            if entry in remote.owned:
                continue
            arrays = remote.backend.arrays(remote.get(*entry))
            parts = [
                files.find(array) or (memory_range(array) if from_memory else None)
                for array in arrays
                if not from_memory or array.flags.aligned
            ]
            if len(parts) == len(arrays) and None not in parts:
                ranges[entry] = [part for part in parts if part is not None]
        if ranges:
            host = HostSlab({entry: remote.get(*entry) for entry in ranges}, ranges)
            found[replace(slab, num_bytes=host.num_bytes, entries=tuple(ranges))] = host
    return found


def _wholly(
    slabs: Sequence[Slab], residency: Residency, entries: Iterable[Entry]
) -> frozenset[Buffer]:
    """Buffers of which every entry stays."""
    stay = {entry for number in residency.resident for entry in slabs[number].entries}
    others = {buffer for (buffer, number) in entries if (buffer, number) not in stay}
    return frozenset({buffer for buffer, _ in stay} - others)


def stored_bytes(stored: Iterable[Buffer], replicas: int) -> dict[Entry, int]:
    """Bytes of the entries of remote buffers that runs write, if replicas differ."""
    return {(b, n): spec_bytes(b.spec) * replicas for b in stored for n in range(b.entries)}


def plan(
    slabs: Sequence[Slab], stored: Sequence[Slab], fixed: Fixed, budget: int, prefetch: int
) -> Residency:
    """The plan within a budget, of weights and of what runs store to.

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
        return plan_residency(slabs, needs, budget, prefetch, stored)
    except BudgetError as error:
        raise OutOfMemoryException(str(error)) from None


def budget_of(settings: Settings, used: int, backend: Backend) -> int:
    """The budget in bytes; 0 for none. A device with memory of its own always has one.

    ``used`` is what the process has of the device's memory.
    """
    if settings.device_memory > 0:
        return settings.device_memory
    if backend.shares_host:
        return used + available_bytes() if settings.device_memory == AUTO else 0
    free = backend.memory_free()
    return used + free if free else 0


def anonymous_bytes() -> int:
    """Anonymous memory of this process; 0 where the system does not tell."""
    return _kibibytes("/proc/self/status", "RssAnon:")


def available_bytes() -> int:
    """Memory of the host that may be taken: what the system has, within its control group."""
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
