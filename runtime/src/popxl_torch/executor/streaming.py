"""Weights that are read from their files into memory of a session's own, slab by slab.

A slab that stays has memory for itself and is read once. The others pass through slots: while one
is in use, those that followed it the last time are read into the slots that are free. A wrong guess
costs time, never correctness. A slot is free when no tensor refers to its memory any more; if a
program keeps tensors of more slabs than there are slots, further slots are taken.
"""

from __future__ import annotations

import mmap
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from popxl_torch.backends.base import Backend
from popxl_torch.executor.file_ranges import FileRange
from popxl_torch.executor.file_reader import ALIGNMENT, FileReader, Reading
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Buffer

Entry = tuple[Buffer, int]

_GAP = 1 << 16
"""Bytes between ranges up to which they are read as one."""


class FileSlab:
    """Entries that are loaded together, and where they lie.

    Attributes:
        tensors: of each entry, a view of files.
        reads: ranges of files that cover them; each begins where a direct read may.
        places: of each entry's parts, in the order of ``Backend.arrays``, where they begin in the
            slab's memory, which has one read behind the other.
        num_bytes: of that memory.
    """

    def __init__(
        self, tensors: Mapping[Entry, Any], ranges: Mapping[Entry, Sequence[FileRange]]
    ) -> None:
        """``ranges`` are those of each entry's parts."""
        self.tensors = tensors
        self.reads = _joined(part for parts in ranges.values() for part in parts)
        starts = [0, *accumulate(_aligned(read.end - read.start) for read in self.reads)]
        self.num_bytes = starts[-1]
        self.places = {
            entry: [self._place(part, starts) for part in parts] for entry, parts in ranges.items()
        }

    def _place(self, part: FileRange, starts: Sequence[int]) -> int:
        for read, start in zip(self.reads, starts, strict=False):
            if read.path == part.path and read.start <= part.start and part.end <= read.end:
                return start + part.start - read.start
        raise AssertionError("a part that no read covers")


def _joined(parts: Iterable[FileRange]) -> list[FileRange]:
    reads: list[FileRange] = []
    for part in sorted(parts):
        start = part.start - part.start % ALIGNMENT
        last = reads[-1] if reads else None
        if last is not None and last.path == part.path and start <= last.end + _GAP:
            reads[-1] = FileRange(part.path, last.start, max(last.end, part.end))
        else:
            reads.append(FileRange(part.path, start, part.end))
    return reads


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Slot:
    """Memory for one slab at a time."""

    def __init__(self, num_bytes: int) -> None:
        # Private pages: anonymous memory, which begins at a page.
        self.memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.num_bytes = num_bytes
        self.holds: FileSlab | None = None
        self.reading: Reading | None = None
        self._lease: weakref.ref[np.ndarray] | None = None

    @property
    def in_use(self) -> bool:
        """Whether some tensor refers to its memory."""
        return self._lease is not None and self._lease() is not None

    def lease(self) -> np.ndarray:
        """The memory as bytes. It is in use as long as there are views of this array."""
        lease = self._lease() if self._lease is not None else None
        if lease is None:
            lease = np.frombuffer(self.memory, np.uint8)
            self._lease = weakref.ref(lease)
        return lease

    def read(self, slab: FileSlab, reader: FileReader) -> None:
        """Begin to read a slab."""
        self.forget()
        view, at, parts = memoryview(self.memory), 0, []
        for whole in slab.reads:
            size = _aligned(whole.end - whole.start)
            parts.append((whole, view[at : at + size]))
            at += size
        self.holds, self.reading = slab, reader.read(parts)

    def forget(self) -> None:
        """Hold nothing; nothing writes to the memory afterwards."""
        if self.reading is not None:
            self.reading.cancel()
        self.holds = self.reading = None


class Streamer:
    """The slabs of one session in memory of its own."""

    def __init__(
        self,
        slabs: Sequence[FileSlab],
        resident: Sequence[int],
        slots: int,
        prefetch: int,
        backend: Backend,
        trace: Trace,
    ) -> None:
        """Open the files.

        Args:
            slabs: in the order of execution.
            resident: numbers of those that stay.
            slots: through which the others pass.
            prefetch: 0 to read nothing before it is asked for.
            backend: makes the tensors.
            trace: counts bytes and waits.

        Raises:
            OSError: a file cannot be read.
        """
        self.backend = backend
        self.trace = trace
        self.buffers = {buffer for slab in slabs for buffer, _ in slab.tensors}
        self._slab_of = {entry: slab for slab in slabs for entry in slab.tensors}
        self._resident = {slabs[n] for n in resident}
        self._homes: dict[FileSlab, _Slot] = {}
        self._pool: list[_Slot] = []
        self._planned_slots = slots
        self._prefetch = prefetch
        streamed = [slab.num_bytes for slab in slabs if slab not in self._resident]
        self._slot_bytes = max(streamed, default=0)
        self._follows = dict(zip(slabs, (*slabs[1:], *slabs[:1]), strict=True))
        self._current: FileSlab | None = None
        self._lease: np.ndarray | None = None
        self._reader = FileReader()
        try:
            for slab in slabs:
                for read in slab.reads:
                    self._reader.open(read.path, read.end)
        except BaseException:
            self._reader.close()
            raise

    @property
    def extra_slots(self) -> int:
        """Slots beyond the plan, taken because tensors were kept for long."""
        return max(0, len(self._pool) - self._planned_slots)

    def load(self, buffer: Buffer, entry: int) -> Any | None:
        """The tensor of an entry; None if it is of no slab.

        Raises:
            OSError: it cannot be read. A later load tries again.
        """
        slab = self._slab_of.get((buffer, entry))
        if slab is None:
            return None
        if slab is not self._current:
            self._enter(slab)
        assert self._lease is not None
        key = (buffer, entry)
        return self.backend.moved(slab.tensors[key], self._lease, slab.places[key])

    def close(self) -> None:
        """End the threads and let go of the memory."""
        self._current = self._lease = None
        for slot in (*self._homes.values(), *self._pool):
            slot.forget()
        self._homes.clear()
        self._pool.clear()
        self._reader.close()

    # -- slabs ------------------------------------------------------------------------------

    def _enter(self, slab: FileSlab) -> None:
        """Have a slab in memory, and the next ones under way."""
        if self._current is not None:
            self._follows[self._current] = slab
        self._current = self._lease = None
        slot = self._find(slab)
        if slot is None:
            slot = self._slot_for(slab)
            slot.read(slab, self._reader)
        # From here on the slot is in use: what is read ahead does not touch it.
        lease = slot.lease()
        if self._prefetch:
            self._read_ahead(slab)
        if slot.reading is not None:
            self._wait(slot, slab)
        self._current, self._lease = slab, lease

    def _wait(self, slot: _Slot, slab: FileSlab) -> None:
        assert slot.reading is not None
        start = time.perf_counter()
        try:
            slot.reading.wait()
        except BaseException:
            slot.forget()
            raise
        slot.reading = None
        self.trace.count_read(slab.num_bytes, time.perf_counter() - start)

    def _find(self, slab: FileSlab) -> _Slot | None:
        """The slot that holds a slab, or is being filled with it."""
        home = self._homes.get(slab)
        candidates = self._pool if home is None else (home,)
        return next((slot for slot in candidates if slot.holds is slab), None)

    def _slot_for(self, slab: FileSlab) -> _Slot:
        """Memory for a slab that is needed now."""
        if slab in self._resident:
            return self._homes.setdefault(slab, _Slot(slab.num_bytes))
        wanted = self._next(slab, len(self._pool))
        slot = self._free_slot(wanted) or self._free_slot(())
        if slot is None:
            slot = _Slot(self._slot_bytes)
            self._pool.append(slot)
        return slot

    def _free_slot(self, wanted: Sequence[FileSlab]) -> _Slot | None:
        """A slot that is not in use and holds none of the wanted slabs; a new one if the plan has
        more."""
        free = [s for s in self._pool if not s.in_use and s.holds not in wanted]
        # Better one whose slab has been used than one that is still being filled.
        free.sort(key=lambda slot: slot.reading is not None and not slot.reading.done)
        if free:
            return free[0]
        if len(self._pool) < self._planned_slots:
            self._pool.append(_Slot(self._slot_bytes))
            return self._pool[-1]
        return None

    def _read_ahead(self, slab: FileSlab) -> None:
        """Begin to read what comes next, as far as there are slots for it."""
        wanted = self._next(slab, max(self._planned_slots, 1))
        for following in wanted:
            if self._find(following) is not None:
                continue
            if following in self._resident:
                slot: _Slot | None = self._slot_for(following)
            else:
                slot = self._free_slot(wanted)
            if slot is None:
                return
            slot.read(following, self._reader)

    def _next(self, slab: FileSlab, count: int) -> list[FileSlab]:
        """The slabs that are expected after one and are not in memory for good: ``count`` of
        them."""
        found: list[FileSlab] = []
        following = self._follows[slab]
        for _ in range(len(self._follows)):
            if following is slab or len(found) == count:
                break
            home = self._homes.get(following)
            if following not in found and (home is None or home.holds is not following):
                found.append(following)
            following = self._follows[following]
        return found
