"""Remote memory: the entries of all remote buffers.

An entry is a tensor, with a leading replica axis if replicas differ. Entries that no run stores to
are views of the host's arrays, and a load hands them out as they are: in one memory a load is a
view, unless their files are to be read instead (see executor/streaming.py). For a device with
memory of its own they are brought there in the same way; tables of which only rows are used may
stay where they are. Entries of buffers that runs store to lie on the device, or elsewhere if there
is no room for them (see executor/spill.py). They are copied on store, and on load where the run may
store to them as well, except by ``update``, which writes a window of an entry in place (see
passes/update_remote.py); ``owned`` are the entries whose memory is the store's alone. Of those that
a device with memory of its own has elsewhere, a load copies what is read of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.spill import Spill
from popxl_torch.executor.streaming import Streamer
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.errors import popart_runtime_error
from popxl_torch.ir.records import Buffer
from popxl_torch.plan.windows import Window


class RemoteStore:
    """Contents of the remote buffers, by buffer and entry."""

    def __init__(self, backend: Backend, stored: Collection[Buffer], trace: Trace) -> None:
        """``stored`` are the buffers that some op stores to.

        What is planned for a device of its own (see executor/placement.py): ``resident`` are the
        buffers that stay there as a whole, ``tables`` those of which rows are read on the host.
        ``moves`` counts how often some entry of a buffer got another memory.
        """
        self.backend = backend
        self.stored = stored
        self.trace = trace
        self.entries: dict[tuple[Buffer, int], Any] = {}
        self.owned: set[tuple[Buffer, int]] = set()
        self.streamer: Streamer | None = None
        self.spill: Spill | None = None
        self.resident: frozenset[Buffer] = frozenset()
        self.tables: frozenset[Buffer] = frozenset()
        self.moves: Counter[Buffer] = Counter()

    def put(self, buffer: Buffer, entry: int, tensor: Any) -> bool:
        """Set an entry without copying; returns whether its memory is another one now."""
        self._check(buffer, entry)
        old = self.entries.get((buffer, entry))
        self._set(buffer, entry, tensor)
        self.owned.discard((buffer, entry))
        return old is None or not self.backend.same(old, tensor)

    def get(self, buffer: Buffer, entry: int, varying: bool = False) -> Any:
        """An entry as it is kept; if it was never written zeros, with the replica axis if
        ``varying``."""
        self._check(buffer, entry)
        found = self.entries.get((buffer, entry))
        if found is None:
            # A file's are there already: what is not written to costs no reading and no writing.
            memory = None if self.spill is None else self.spill.memory((buffer, entry))
            found = self.backend.remote_zeros(buffer.spec, varying, memory)
            self._set(buffer, entry, found)
            self.owned.add((buffer, entry))
        return found

    def spill_to(self, spill: Spill | None) -> None:
        """Have room elsewhere for some of the entries that runs store to, instead of the room
        before."""
        before = self.spill
        moved = [
            entry
            for entry in self.owned
            if any(room is not None and entry in room.sizes for room in (spill, before))
        ]
        self.spill = spill
        for entry in moved:
            self._own(*entry, self.entries[entry])
        if before is not None:
            before.close()

    def _own(self, buffer: Buffer, entry: int, tensor: Any) -> Any:
        """Let an entry be a copy of a value, in memory of the store's own; returns it."""
        kept = self.backend.remote_copy(tensor, buffer.spec, self._elsewhere(buffer, entry))
        self._set(buffer, entry, kept)
        self.owned.add((buffer, entry))
        return kept

    def _elsewhere(self, buffer: Buffer, entry: int) -> Any | None:
        """Memory for an entry that is not to lie on the device, which may be written to now."""
        memory = None if self.spill is None else self.spill.memory((buffer, entry))
        if self.spill is not None and memory is not None:
            self.spill.settle()
        return memory

    def _set(self, buffer: Buffer, entry: int, tensor: Any) -> None:
        self.entries[buffer, entry] = tensor
        self.moves[buffer] += 1

    def varying_buffers(self) -> set[Buffer]:
        """Buffers of which some entry differs between replicas."""
        return {
            buffer
            for (buffer, _), tensor in self.entries.items()
            if self.backend.has_lead(tensor, buffer.spec)
        }

    def load(
        self,
        buffer: Buffer,
        entry: int,
        varying: bool,
        view: bool = False,
        reads: Window | None = None,
    ) -> Any:
        """An entry's value, with the replica axis if ``varying``; the kept memory itself if only a
        ``view`` is needed.

        ``reads``: all that is looked at.
        """
        kept = self.get(buffer, entry)
        read = None
        if self.streamer is not None:
            # Of what stays, loads are recorded, in which no copy may be asked for.
            read = self.streamer.load(buffer, entry, ahead=not self.is_fixed(buffer))
        if self.is_away(buffer, entry):
            tensor = self._brought(buffer, kept, reads)
        else:
            if read is not None:
                tensor = read
            else:
                tensor = kept if view and self.backend.shares_host else self._loaded(kept, buffer)
            if self.trace.active:
                copied = read is None and tensor is not kept
                self.trace.count(self.backend.nbytes(kept), copied)
        if varying and not self.backend.has_lead(tensor, buffer.spec):
            tensor = self.backend.expand(tensor)
        return tensor

    def is_fixed(self, buffer: Buffer) -> bool:
        """Whether no run changes the buffer and a load is a view of what stays at its place."""
        if not self.backend.shares_host:
            return buffer in self.resident
        streamed = self.streamer is not None and buffer in self.streamer.buffers
        return buffer not in self.stored and not streamed

    def stays(self, buffer: Buffer) -> bool:
        """Whether the device has all entries of a buffer that runs store to."""
        return self.backend.shares_host or self.spill is None or buffer not in self.spill.buffers

    def is_away(self, buffer: Buffer, entry: int) -> bool:
        """Whether an entry must be brought to the device, from memory of the store's own."""
        if self.backend.shares_host or self.spill is None or (buffer, entry) not in self.owned:
            return False
        return (buffer, entry) in self.spill.sizes

    def _brought(self, buffer: Buffer, kept: Any, reads: Window | None) -> Any:
        """An entry that is away on the device, as far as it is looked at."""
        reads = _read_of(buffer, reads)
        copied = math.prod(stop - start for start, stop in reads)
        if self.trace.active:
            whole = self.backend.nbytes(kept)
            self.trace.count(whole * copied // max(buffer.spec.nelms, 1), copied=True)
        return self.backend.bring(kept, reads) if copied else kept

    def _look_ahead(self, buffer: Buffer, entry: int, reads: Window | None) -> None:
        """What is read of an entry is likely to be read of the next one."""
        if self.spill is not None:
            reads = _read_of(buffer, reads)
            if reads and all(start < stop for start, stop in reads):
                self.spill.look_ahead((buffer, entry), reads)

    def view(self, buffer: Buffer, entry: int, varying: bool) -> Any:
        """As :meth:`load` of a fixed buffer, not counted."""
        kept = self.get(buffer, entry)
        brought = None if self.streamer is None else self.streamer.load(buffer, entry)
        kept = kept if brought is None else brought
        lacks_axis = varying and not self.backend.has_lead(kept, buffer.spec)
        return self.backend.expand(kept) if lacks_axis else kept

    def _loaded(self, kept: Any, buffer: Buffer) -> Any:
        """The device's tensor of a kept one; not the kept memory if that may be stored to."""
        if buffer in self.tables:
            return kept
        tensor = self.backend.fetch(kept)
        if buffer in self.stored and tensor is kept:
            return self.backend.stored(tensor, buffer.spec)
        return tensor

    def load_each(self, buffer: Buffer, entries: list[int]) -> Any:
        """Each replica's own entry, stacked."""
        parts = [self.load_replica(buffer, entry, r) for r, entry in enumerate(entries)]
        return self.backend.stack(parts)

    def load_replica(self, buffer: Buffer, entry: int, replica: int) -> Any:
        """One replica's value of an entry."""
        tensor = self.get(buffer, entry)
        if self.backend.has_lead(tensor, buffer.spec):
            tensor = self.backend.replica(tensor, replica)
        return self._loaded(tensor, buffer)

    def store(self, buffer: Buffer, entry: int, tensor: Any) -> None:
        """Replace an entry by a copy of a value."""
        self._check(buffer, entry)
        self._own(buffer, entry, tensor)

    def update(
        self,
        buffer: Buffer,
        entry: int,
        axes: tuple[int, ...],
        starts: Any,
        window: Any,
        varying: bool,
        reads: Window | None = None,
    ) -> Any:
        """Write a window into an entry in place; returns the entry as ``load`` does, not copied if
        the device has it."""
        kept = self.get(buffer, entry, varying)
        lead = self.backend.has_lead(kept, buffer.spec)
        if (buffer, entry) not in self.owned or lead != varying:
            # The host's array, or zeros that replicas share: take memory of our own once.
            kept = kept if lead or not varying else self.backend.expand(kept)
            if (buffer, entry) in self.owned:  # may lie where its copy will
                kept = self.backend.remote_copy(kept, buffer.spec)
            kept = self._own(buffer, entry, kept)
        away = self.is_away(buffer, entry)
        if away and self.spill is not None:
            self.spill.settle()
        self.backend.remote_window(kept, axes, starts, window, int(varying))
        self._look_ahead(buffer, entry, reads)
        if away:
            return self._brought(buffer, kept, reads)
        if self.trace.active:
            self.trace.count(self.backend.nbytes(kept), copied=False)
        return kept

    def store_replica(self, buffer: Buffer, entry: int, tensor: Any, replica: int) -> None:
        """Replace one replica's value of an entry."""
        old = self.backend.fetch(self.get(buffer, entry))
        lead = self.backend.has_lead(old, buffer.spec)
        count = self.backend.replicas
        parts = [self.backend.replica(old, r) if lead else old for r in range(count)]
        parts[replica] = self.backend.remote_copy(tensor, buffer.spec)
        self._own(buffer, entry, self.backend.stack(parts))

    def _check(self, buffer: Buffer, entry: int) -> None:
        if not 0 <= entry < buffer.entries:
            raise popart_runtime_error(
                f"Remote buffer {buffer.id} ({buffer.spec}) has {buffer.entries} entries: there is"
                f" no entry {entry}"
            )


def _read_of(buffer: Buffer, reads: Window | None) -> Window:
    """What is looked at of an entry; all of it if nothing is said."""
    return tuple((0, size) for size in buffer.spec.shape) if reads is None else reads
