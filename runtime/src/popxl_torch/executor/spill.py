"""Entries of remote buffers that runs write and for which the memory of the device is too small.

Beside a CPU they lie in a file. It is mapped, so an entry is used where it lies, like any other;
its pages are the system's to write out and to read again. It has no name: nothing is left of it
when the process ends, however that happens. Its folder is that of temporary files (``TMPDIR``).

Beside a device with memory of its own they lie in pinned memory of the host; in such a file if the
host has no room. A load queues copies among the work, so it comes behind all that is to happen
before. A store waits for the work so far, and is done when it returns: no load that is queued finds
what is stored after it, and none that follows can miss it.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from popxl_torch.executor.device_slots import Link, pinned
from popxl_torch.executor.slabs import Entry, empty_pages
from popxl_torch.ir.errors import OutOfMemoryException


class Spill:
    """Room for some entries."""

    def __init__(
        self, sizes: Mapping[Entry, int], link: Link | None = None, in_file: bool = True
    ) -> None:
        """Take room for entries of so many bytes; they are zeros.

        Args:
            sizes: of the entries.
            link: of a device with memory of its own.
            in_file: whether the room is in a file, else in memory that is pinned if it can be.

        Raises:
            OutOfMemoryException: there is no room on the disk.
        """
        self.sizes = dict(sizes)
        self.buffers = frozenset(buffer for buffer, _ in sizes)
        self._link = link
        lengths = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes.values()]
        starts = [0, *accumulate(lengths)]
        self._places = dict(zip(sizes, starts, strict=False))
        self._memory = _file(starts[-1]) if in_file else empty_pages(starts[-1])
        if link is not None and not in_file:
            pinned(link, self._memory, "copies of what runs write take longer")

    def memory(self, entry: Entry) -> np.ndarray | None:
        """The bytes of an entry; None for one that has no room here."""
        if entry not in self._places:
            return None
        return np.frombuffer(self._memory, np.uint8, self.sizes[entry], self._places[entry])

    def settle(self) -> None:
        """Wait until nothing that is queued reads the memory any more."""
        if self._link is not None:
            self._link.reach(self._link.computed())

    def close(self) -> None:
        """Unpin. The entries are elsewhere by now."""
        if self._link is not None:
            self._link.close()


def _file(num_bytes: int) -> mmap.mmap:
    """A file that is mapped and has no name."""
    with tempfile.TemporaryFile(prefix="popxl-") as file:
        try:
            # Without its blocks a mapped file that meets a full disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise
            raise OutOfMemoryException(
                f"device_memory has no room for {num_bytes:,} bytes of remote buffers that runs"
                f" write, and {tempfile.gettempdir()} has none either: {error.strerror}; the"
                " environment variable TMPDIR names another folder"
            ) from error
        return mmap.mmap(file.fileno(), num_bytes)
