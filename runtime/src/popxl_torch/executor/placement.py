"""Where a session's weights, and what its runs write, are kept."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.device_slots import DeviceSlots
from popxl_torch.executor.file_ranges import MappedFiles, memory_range
from popxl_torch.executor.host_memory import anonymous_bytes, available_bytes
from popxl_torch.executor.host_slots import HostSlots
from popxl_torch.executor.memory_plan import (
    Fixed,
    phase_rows,
    storage_bytes,
    stored_as,
    stored_rows,
    totals,
    write_report,
)
from popxl_torch.executor.planner import Planner
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.slabs import Entry, HostSlab
from popxl_torch.executor.spill import Spill
from popxl_torch.executor.streaming import SlotMaker, Streamer
from popxl_torch.ir.errors import OutOfMemoryException
from popxl_torch.ir.records import Buffer
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
        self._budget = 0
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
        if self._own_memory and self._budget:
            self._backend.limit_memory(self._budget)
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
        if self._own_memory and self._budget:
            self._backend.limit_memory(0)
            self._budget = 0

    def _loaded(self, sizes: Mapping[Entry, int]) -> tuple[list[Slab], list[Slab]]:
        """What is brought: slabs, and tables of which rows are used."""
        if not self._brings:
            return [], []
        groups = self.planner.slabs()
        tables = [group for group in groups if group.gathered] if self._own_memory else []
        slabs = [group for group in groups if not group.gathered]
        return slabs_of(slabs, sizes), slabs_of(tables, sizes)

    def _plan(
        self, slabs: list[Slab], tables: list[Slab], arrays: Mapping[Entry, Any], varying: Varying
    ) -> tuple[list[Slab], Residency]:
        """The slabs that are brought, and which of them stay. Tables do if there is room for all;
        else their rows are read on the host."""
        used = self._backend.memory_used() if self._own_memory else anonymous_bytes()
        fixed = self._fixed(varying, used)
        self._budget = budget = budget_of(self.settings, used, self._backend)
        whole = fixed.total + sum(slab.num_bytes for slab in (*slabs, *tables, *self._stored))
        chosen = slabs if budget and whole > budget else [*slabs, *tables]
        residency = plan(chosen, self._stored, fixed, budget, self.settings.prefetch)
        if self._own_memory:
            if len(residency.stored) < len(self._stored):
                fixed = self._fixed(varying, used, all_stay=False)
                residency = plan(chosen, self._stored, fixed, budget, self.settings.prefetch)
            self.remote.resident = _wholly(chosen, residency, arrays)
            self.remote.tables = frozenset(
                buffer for slab in tables if slab not in chosen for buffer, _ in slab.entries
            )
        if self.settings.memory_plan:
            self._report(arrays, chosen, residency, fixed)
        return chosen, residency

    def _report(
        self,
        arrays: Mapping[Entry, Any],
        slabs: Sequence[Slab],
        residency: Residency,
        fixed: Fixed,
    ) -> None:
        content = {
            "version": 1,
            "device": self.device,
            "weights": self.settings.weights,
            "budget_bytes": self._budget,
            "phases": phase_rows(self.planner.slabs(), arrays, slabs, residency),
            "storages": storage_bytes(arrays),
            "stored": stored_rows(self._stored, residency),
            **totals(self._stored, residency, fixed),
        }
        write_report(self.settings.memory_plan, content)

    def _fixed(self, varying: Varying, used: int, all_stay: bool = True) -> Fixed:
        """``all_stay``: whether the device has all that runs store to."""
        activations = self.planner.activation_bytes(varying, not self._own_memory, all_stay)
        if not self._own_memory:
            return Fixed(used, activations, SCRATCH_BYTES)
        if self.settings.cuda_graphs:
            activations *= 2
        # Stored buffers may be there from before.
        there = [entry for entry in self.remote.owned if not self.remote.is_away(*entry)]
        kept = sum(self._backend.nbytes(self.remote.get(*entry)) for entry in there)
        return Fixed(max(used - kept, 0), activations, DEVICE_SCRATCH_BYTES)

    def _spill(self, residency: Residency) -> None:
        """Have room elsewhere for what runs store to and is not to stay in the device's memory."""
        every = stored_bytes(self.remote.stored, self._backend.replicas)
        away = [slab for n, slab in enumerate(self._stored) if n not in residency.stored]
        sizes = {entry: every[entry] for slab in away for entry in slab.entries}
        if sizes.keys() != (self.remote.spill.sizes.keys() if self.remote.spill else set()):
            self.remote.spill_to(self._room_for(sizes) if sizes else None)

    def _room_for(self, sizes: Mapping[Entry, int]) -> Spill:
        if not self._own_memory:
            return Spill(sizes)
        in_file = not has_room(sum(sizes.values()), "what runs write", "they lie in a file")
        return Spill(sizes, self._backend.link(), in_file)

    @functools.cached_property
    def _stored(self) -> list[Slab]:
        """What runs store to, in the order of execution."""
        sizes = stored_bytes(self.remote.stored, self._backend.replicas)
        return slabs_of(self.planner.stored(), sizes)

    def _slot_maker(self, slabs: list[HostSlab], residency: Residency) -> SlotMaker:
        if not self._own_memory:
            return HostSlots(slabs)
        held: list[HostSlab] = []
        if self.settings.weights == "pinned":
            held = [slab for n, slab in enumerate(slabs) if n not in residency.resident]
            size = sum(slab.num_bytes for slab in held)
            if not has_room(size, "weights", "they pass through a small pinned ring"):
                held = []
        return DeviceSlots(self._backend.link(), slabs, held, self.settings.weights == "read")


SCRATCH_BYTES = 192 << 20
"""Workspaces of products and plans. A model of 6 billion parameters was seen to take 107 MiB for a
prompt of 2048 positions; tiles of quantised matrices are 64 MiB more."""


DEVICE_SCRATCH_BYTES = 256 << 20
"""On a GPU: workspaces of its libraries (up to 32 MiB for each of two streams), what kernels hold
besides their results, rounding of the allocator. An estimate: nothing was measured."""


def slabs_of(groups: Iterable[LoadedTogether], sizes: Mapping[Entry, int]) -> list[Slab]:
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
        "scratch": fixed.scratch,
    }
    try:
        return plan_residency(slabs, needs, budget, prefetch, stored)
    except BudgetError as error:
        raise OutOfMemoryException(str(error)) from None


def has_room(num_bytes: int, what: str, otherwise: str) -> bool:
    """Whether so much of the host's memory may be pinned; if not, it is said of ``what``, and what
    happens ``otherwise``."""
    free = available_bytes()
    if num_bytes <= free - free // 8:
        return True
    _LOG.warning("%d MiB of %s are not pinned, as the host has %d MiB free, and %s",
                 num_bytes >> 20, what, free >> 20, otherwise)  # fmt: skip
    return False


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
