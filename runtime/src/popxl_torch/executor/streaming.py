"""Weights that are brought into memory of a session's own, slab by slab.

A slab that stays has memory for itself and is brought once. The others pass through slots: while
one is in use, those that followed it the last time are brought into the slots that are free. A
wrong guess costs time, never correctness. A slot is free when no tensor refers to its memory any
more; if a program keeps tensors of more slabs than there are slots, further slots are taken.

What a slot is depends on the device: here those of the host, which files are read into; those of a
device with memory of its own are in executor/device_slots.py.
"""

from __future__ import annotations

import mmap
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from popxl_torch.backends.base import Backend
from popxl_torch.executor.file_ranges import FileRange
from popxl_torch.executor.file_reader import ALIGNMENT, FileReader, Reading, aligned
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Buffer

Entry = tuple[Buffer, int]

_GAP = 1 << 16
"""Bytes between ranges of a file up to which they are read as one."""


class HostSlab:
    """Entries that are loaded together, and where they lie on the host.

    Attributes:
        tensors: of each entry, a view of files or of the host's memory.
        reads: ranges that cover them; each begins where a direct read may.
        places: of each entry's parts, in the order of ``Backend.arrays``, where they begin in the
            slab's memory, which has one read behind the other.
        num_bytes: of that memory.
        file_bytes: of it, what comes from files.
    """

    def __init__(
        self, tensors: Mapping[Entry, Any], ranges: Mapping[Entry, Sequence[FileRange]]
    ) -> None:
        """``ranges`` are those of each entry's parts."""
        self.tensors = tensors
        self.reads = _joined(part for parts in ranges.values() for part in parts)
        sizes = [aligned(read.end - read.start) for read in self.reads]
        starts = [0, *accumulate(sizes)]
        self.num_bytes = starts[-1]
        self.file_bytes = sum(
            size for read, size in zip(self.reads, sizes, strict=True) if read.path is not None
        )
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
    for part in sorted(parts, key=lambda part: (str(part.path or ""), part.start)):
        # In memory that is the same page.
        start = part.start - part.start % ALIGNMENT
        gap = 0 if part.path is None else _GAP
        last = reads[-1] if reads else None
        if last is not None and last.path == part.path and start <= last.end + gap:
            reads[-1] = FileRange(part.path, last.start, max(last.end, part.end))
        else:
            reads.append(FileRange(part.path, start, part.end))
    return reads


def empty_pages(num_bytes: int) -> mmap.mmap:
    """Anonymous memory of the host, which begins at a page."""
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Slot(Protocol):
    """Memory for one slab at a time.

    Attributes:
        num_bytes: of the memory.
        holds: the slab that is there, or on its way.
    """

    num_bytes: int
    holds: HostSlab | None

    @property
    def in_use(self) -> bool:
        """Whether some tensor refers to its memory."""
        ...

    @property
    def arrived(self) -> bool:
        """Whether :meth:`wait` has been called for what it holds, or need not be."""
        ...

    @property
    def busy(self) -> bool:
        """Whether threads still fill it."""
        ...

    def lease(self) -> Any:
        """The memory, for ``Backend.moved``. It is in use as long as there are views of this."""
        ...

    def bring(self, slab: HostSlab) -> None:
        """Begin to fill it with a slab."""
        ...

    def wait(self) -> None:
        """From here on the slab may be computed with.

        Raises:
            OSError: a file cannot be read.
        """
        ...

    def forget(self) -> None:
        """Hold nothing; no thread writes to the memory afterwards."""
        ...


class SlotMaker(Protocol):
    """Makes the slots of one session.

    Attributes:
        copied: whether slabs are copied from the host's memory to the device's.
    """

    copied: bool

    def slot(self, num_bytes: int) -> Slot:
        """A slot that holds nothing."""
        ...

    def read_bytes(self, slab: HostSlab) -> int:
        """What is read from files whenever the slab is brought."""
        ...

    def close(self) -> None:
        """Let go of threads and files. No slot is used afterwards."""
        ...


class HostSlots:
    """Slots of the host, which is the device: files are read straight into them."""

    copied = False

    def __init__(self, slabs: Iterable[HostSlab]) -> None:
        """Open the files of slabs.

        Raises:
            OSError: a file cannot be read.
        """
        self.reader = open_files(slabs, direct=True)

    def slot(self, num_bytes: int) -> Slot:
        """See :class:`SlotMaker`."""
        return _HostSlot(num_bytes, self.reader)

    def read_bytes(self, slab: HostSlab) -> int:
        """See :class:`SlotMaker`."""
        return slab.num_bytes

    def close(self) -> None:
        """See :class:`SlotMaker`."""
        self.reader.close()


def open_files(slabs: Iterable[HostSlab], direct: bool) -> FileReader:
    """A reader that has opened all files of slabs.

    Raises:
        OSError: a file cannot be read.
    """
    reader = FileReader(direct)
    try:
        for slab in slabs:
            for whole in slab.reads:
                reader.open(whole)
    except BaseException:
        reader.close()
        raise
    return reader


class _HostSlot:
    """See :class:`Slot`."""

    def __init__(self, num_bytes: int, reader: FileReader) -> None:
        self.num_bytes = num_bytes
        self.holds: HostSlab | None = None
        self._memory = empty_pages(num_bytes)
        self._reader = reader
        self._reading: Reading | None = None
        self._lease: weakref.ref[np.ndarray] | None = None

    @property
    def in_use(self) -> bool:
        return self._lease is not None and self._lease() is not None

    @property
    def arrived(self) -> bool:
        return self._reading is None

    @property
    def busy(self) -> bool:
        return self._reading is not None and not self._reading.done

    def lease(self) -> np.ndarray:
        lease = self._lease() if self._lease is not None else None
        if lease is None:
            lease = np.frombuffer(self._memory, np.uint8)
            self._lease = weakref.ref(lease)
        return lease

    def bring(self, slab: HostSlab) -> None:
        self.forget()
        self.holds = slab
        self._reading = self._reader.read_into(memoryview(self._memory), slab.reads)

    def wait(self) -> None:
        if self._reading is not None:
            self._reading.wait()
            self._reading = None

    def forget(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self.holds = self._reading = None


class Streamer:
    """The slabs of one session in memory of its own."""

    def __init__(
        self,
        slabs: Sequence[HostSlab],
        resident: Sequence[int],
        slots: int,
        prefetch: int,
        maker: SlotMaker,
        backend: Backend,
        trace: Trace,
    ) -> None:
        """Nothing is brought yet.

        Args:
            slabs: in the order of execution.
            resident: numbers of those that stay.
            slots: through which the others pass.
            prefetch: 0 to bring nothing before it is asked for.
            maker: makes slots, and is closed with the streamer.
            backend: makes the tensors.
            trace: counts bytes and waits.
        """
        self.maker = maker
        self.backend = backend
        self.trace = trace
        self.buffers = {buffer for slab in slabs for buffer, _ in slab.tensors}
        self._slab_of = {entry: slab for slab in slabs for entry in slab.tensors}
        self._resident = {slabs[n] for n in resident}
        self._homes: dict[HostSlab, Slot] = {}
        self._pool: list[Slot] = []
        self._planned_slots = slots
        self._prefetch = prefetch
        streamed = [slab.num_bytes for slab in slabs if slab not in self._resident]
        self._slot_bytes = max(streamed, default=0)
        self._follows = dict(zip(slabs, (*slabs[1:], *slabs[:1]), strict=True))
        self._current: HostSlab | None = None
        self._lease: Any = None

    @property
    def extra_slots(self) -> int:
        """Slots beyond the plan, taken because tensors were kept for long."""
        return max(0, len(self._pool) - self._planned_slots)

    def load(self, buffer: Buffer, entry: int, ahead: bool = True) -> Any | None:
        """The tensor of an entry; None if it is of no slab.

        Args:
            buffer: where it is.
            entry: its number.
            ahead: whether the slabs behind it are brought meanwhile.

        Raises:
            OSError: it cannot be read. A later load tries again.
        """
        slab = self._slab_of.get((buffer, entry))
        if slab is None:
            return None
        if slab is not self._current:
            self._enter(slab, ahead)
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
        self.maker.close()

    # -- slabs ------------------------------------------------------------------------------

    def _enter(self, slab: HostSlab, ahead: bool) -> None:
        """Have a slab in memory, and the next ones under way if they may be."""
        if self._current is not None:
            self._follows[self._current] = slab
        self._current = self._lease = None
        slot = self._find(slab)
        if slot is None:
            slot = self._slot_for(slab)
            slot.bring(slab)
        # From here on the slot is in use: what is brought ahead does not touch it.
        lease = slot.lease()
        if self._prefetch and ahead:
            self._look_ahead(slab)
        if not slot.arrived:
            self._wait(slot, slab)
        self._current, self._lease = slab, lease

    def _wait(self, slot: Slot, slab: HostSlab) -> None:
        start = time.perf_counter()
        try:
            slot.wait()
        except BaseException:
            slot.forget()
            raise
        waited_s = time.perf_counter() - start
        copied = slab.num_bytes if self.maker.copied else 0
        self.trace.count_brought(self.maker.read_bytes(slab), copied, waited_s)

    def _find(self, slab: HostSlab) -> Slot | None:
        """The slot that holds a slab, or is being filled with it."""
        home = self._homes.get(slab)
        candidates = self._pool if home is None else (home,)
        return next((slot for slot in candidates if slot.holds is slab), None)

    def _slot_for(self, slab: HostSlab) -> Slot:
        """Memory for a slab that is needed now."""
        if slab in self._resident:
            if slab not in self._homes:
                self._homes[slab] = self.maker.slot(slab.num_bytes)
            return self._homes[slab]
        wanted = self._next(slab, len(self._pool))
        slot = self._free_slot(wanted) or self._free_slot(())
        if slot is None:
            slot = self.maker.slot(self._slot_bytes)
            self._pool.append(slot)
        return slot

    def _free_slot(self, wanted: Sequence[HostSlab]) -> Slot | None:
        """A slot that is not in use and holds none of the wanted slabs; a new one if the plan has
        more."""
        free = [s for s in self._pool if not s.in_use and s.holds not in wanted]
        # Better one whose slab has been used than one that is still being filled.
        free.sort(key=lambda slot: slot.busy)
        if free:
            return free[0]
        if len(self._pool) < self._planned_slots:
            self._pool.append(self.maker.slot(self._slot_bytes))
            return self._pool[-1]
        return None

    def _look_ahead(self, slab: HostSlab) -> None:
        """Begin to bring what comes next, as far as there are slots for it."""
        wanted = self._next(slab, max(self._planned_slots, 1))
        for number, following in enumerate(wanted):
            if self._find(following) is not None:
                continue
            if following in self._resident:
                slot: Slot | None = self._slot_for(following)
            else:
                # What is needed later makes room for what is needed sooner.
                slot = self._free_slot(wanted) or self._free_slot(wanted[:number])
            if slot is None:
                return
            slot.bring(following)

    def _next(self, slab: HostSlab, count: int) -> list[HostSlab]:
        """The slabs that are expected after one and are not in memory for good: ``count`` of
        them."""
        found: list[HostSlab] = []
        following = self._follows[slab]
        for _ in range(len(self._follows)):
            if following is slab or len(found) == count:
                break
            home = self._homes.get(following)
            if following not in found and (home is None or home.holds is not following):
                found.append(following)
            following = self._follows[following]
        return found
