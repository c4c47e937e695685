"""Slots of the host, for a device that is the host: memory that files are read straight into."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import numpy as np

from popxl_torch.executor.file_reader import FileReader, Reading
from popxl_torch.executor.slabs import HostSlab, empty_pages, open_files
from popxl_torch.executor.streaming import Slot


class HostSlots:
    """Makes slots of the host."""

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


class _HostSlot:
    """See :class:`popxl_torch.executor.streaming.Slot`."""

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
