"""Slots of a device with memory of its own: what copies there, and who waits for whom.

The device has two queues: work, which runs the kernels, and copies. The host fills both and waits
for neither. Marks keep them in order, both ways:

    copies:  ... | wait for A's last use | copy slab 3 to A | mark | wait for B's last use | ...
    work:    ... | slab 2 in B ... | mark | wait for A's copy | slab 3 in A ... | mark | ...

The copy of a slab is issued before the slab in front of it computes, so copies follow each other
without a gap as long as work takes less time than they do.

A slab comes in one copy from pinned memory of the host, which holds it for as long as the session
lasts, or else piece by piece through a small ring of pinned memory, which threads fill from files
or from the host's memory.
"""

from __future__ import annotations

import logging
import mmap
import queue
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from popxl_torch.executor import file_reader
from popxl_torch.executor.file_reader import Deliver, Read, Reading, aligned
from popxl_torch.executor.slabs import HostSlab, empty_pages, open_files
from popxl_torch.executor.streaming import Slot

_LOG = logging.getLogger("popxl_torch")

RING_PIECES = 2 * file_reader.IN_FLIGHT
"""Some are filled while others are copied."""


class Link(Protocol):
    """What slots ask of a device. Marks are places in a queue that the other one can wait for."""

    def memory(self, num_bytes: int) -> Any:
        """Bytes of the device."""
        ...

    def lease(self, memory: Any) -> tuple[Any, Callable[[], bool]]:
        """The same memory for ``Backend.moved``, and a function that says whether the host still
        refers to this or to a view of it."""
        ...

    def pin(self, pages: mmap.mmap) -> None:
        """Have copies from memory of the host run at full speed, beside everything else.

        Raises:
            RuntimeError: it cannot be pinned. Copies are right all the same.
        """
        ...

    def copy(self, memory: Any, place: int, source: mmap.mmap, size: int) -> None:
        """Queue a copy of the first ``size`` bytes of ``source`` to ``place``. Any thread may."""
        ...

    def copied(self) -> Any:
        """A mark behind the copies so far."""
        ...

    def computed(self) -> Any:
        """A mark behind the work so far."""
        ...

    def copy_after(self, mark: Any) -> None:
        """Copies from here on wait for a mark."""
        ...

    def compute_after(self, mark: Any) -> None:
        """Work from here on waits for a mark."""
        ...

    def reach(self, mark: Any) -> None:
        """Have the host wait for a mark."""
        ...

    def close(self) -> None:
        """Wait for all copies and all work; unpin."""
        ...


def pinned(link: Link, pages: mmap.mmap, otherwise: str) -> bool:
    """Pin memory; where that fails, say what happens ``otherwise``."""
    try:
        link.pin(pages)
    except RuntimeError as error:
        _LOG.warning("%d MiB of the host's memory cannot be pinned, so %s: %s",
                     len(pages) >> 20, otherwise, error)  # fmt: skip
        return False
    return True


class DeviceSlots:
    """Makes slots of a device, and keeps what they are filled from."""

    copied = True

    def __init__(
        self,
        link: Link,
        slabs: Iterable[HostSlab],
        held: Collection[HostSlab],
        direct: bool,
    ) -> None:
        """Open files and fill pinned memory.

        Args:
            link: the device.
            slabs: all that will be brought.
            held: those that pinned memory of the host shall hold; where it cannot be pinned, they
                pass through the ring like the others.
            direct: whether files are read past the page cache.

        Raises:
            OSError: a file cannot be read.
        """
        self.link = link
        self.reader = open_files(slabs, direct)
        self._images: dict[HostSlab, mmap.mmap] = {}
        try:
            self.ring = _Ring(link)
            for slab in held:
                pages = empty_pages(slab.num_bytes)
                if not pinned(link, pages, "weights pass through a small ring"):
                    break
                self.reader.read_into(memoryview(pages), slab.reads).wait()
                self._images[slab] = pages
        except BaseException:
            self.close()
            raise

    def slot(self, num_bytes: int) -> Slot:
        """See :class:`SlotMaker`."""
        return _DeviceSlot(num_bytes, self)

    def read_bytes(self, slab: HostSlab) -> int:
        """See :class:`SlotMaker`."""
        return 0 if slab in self._images else slab.file_bytes

    def fill(self, memory: Any, slab: HostSlab) -> _Arrival:
        """Begin to copy a slab to the device."""
        image = self._images.get(slab)
        if image is None:
            arrival = _Arrival()
            deliver = self.ring.deliver_to(memory, arrival)
            arrival.reading = self.reader.read(slab.reads, deliver)
            return arrival
        self.link.copy(memory, 0, image, slab.num_bytes)
        return _Arrival(self.link.copied())

    def close(self) -> None:
        """See :class:`SlotMaker`."""
        self.reader.close()
        self.link.close()


class _Arrival:
    """A slab on its way: reads, if there are any, and a mark behind its copies."""

    def __init__(self, mark: Any = None) -> None:
        self.mark = mark
        self.reading: Reading | None = None


class _Ring:
    """Pinned memory that pieces of slabs pass through, each in a thread of the reader's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._order = threading.Lock()
        self._free: queue.SimpleQueue[tuple[mmap.mmap, Any]] = queue.SimpleQueue()
        pieces = [empty_pages(file_reader.PIECE_BYTES) for _ in range(RING_PIECES)]
        all(pinned(link, pages, "copies of weights take longer") for pages in pieces)
        for pages in pieces:
            self._free.put((pages, None))

    def deliver_to(self, memory: Any, arrival: _Arrival) -> Deliver:
        """How pieces get to the device's memory; ``arrival`` is marked behind the last of them."""

        def deliver(read: Read, place: int, size: int) -> None:
            pages, mark = self._free.get()
            try:
                if mark is not None:
                    self._link.reach(mark)
                read(memoryview(pages)[: aligned(size)])
                with self._order:  # the last mark is behind all pieces
                    self._link.copy(memory, place, pages, size)
                    mark = arrival.mark = self._link.copied()
            finally:
                self._free.put((pages, mark))

        return deliver


class _DeviceSlot:
    """See :class:`popxl_torch.executor.streaming.Slot`."""

    def __init__(self, num_bytes: int, owner: DeviceSlots) -> None:
        self.num_bytes = num_bytes
        self.holds: HostSlab | None = None
        self._owner = owner
        self._memory = owner.link.memory(num_bytes)
        self._leases: list[Callable[[], bool]] = []
        self._arrival: _Arrival | None = None

    @property
    def in_use(self) -> bool:
        return any(is_held() for is_held in self._leases)

    @property
    def arrived(self) -> bool:
        return self._arrival is None

    @property
    def busy(self) -> bool:
        reading = self._arrival.reading if self._arrival is not None else None
        return reading is not None and not reading.done

    def lease(self) -> Any:
        lease, is_held = self._owner.link.lease(self._memory)
        self._leases = [*(held for held in self._leases if held()), is_held]
        return lease

    def bring(self, slab: HostSlab) -> None:
        self.forget()
        link = self._owner.link
        # Nothing on the host refers to the memory: its last use is among the work so far.
        link.copy_after(link.computed())
        self.holds, self._arrival = slab, self._owner.fill(self._memory, slab)

    def wait(self) -> None:
        arrival = self._arrival
        if arrival is not None:
            if arrival.reading is not None:
                arrival.reading.wait()
            self._owner.link.compute_after(arrival.mark)
            self._arrival = None

    def forget(self) -> None:
        if self._arrival is not None and self._arrival.reading is not None:
            self._arrival.reading.cancel()
        self.holds = self._arrival = None
