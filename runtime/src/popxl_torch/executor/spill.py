"""Entries of remote buffers that runs write and for which the memory of the device is too small.

Beside a CPU they lie in a file. It is mapped, so an entry is used where it lies, like any other;
its pages are the system's to write out and to read again. While an entry is in use the system is
asked for the next one, as a page that is missed keeps a core waiting. The file has no name: nothing
is left of it when the process ends, however that happens. Its folder is that of temporary files
(``TMPDIR``).

Beside a device with memory of its own they lie in pinned memory of the host; in such a file if the
host has no room. A load queues copies among the work, so it comes behind all that is to happen
before. A store waits for the work so far, and is done when it returns: no load that is queued finds
what is stored after it, and none that follows can miss it.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise

import numpy as np

from popxl_torch.executor.device_slots import Link, pinned
from popxl_torch.executor.slabs import Entry, empty_pages
from popxl_torch.ir.errors import OutOfMemoryException
from popxl_torch.plan.memory import spec_bytes
from popxl_torch.plan.windows import Window, pieces

_AT_ONCE = 1 << 19
"""Bytes that the system is asked for at once: of more it may read a part only."""


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
        self._file = _File(starts[-1]) if in_file else None
        self._memory = empty_pages(starts[-1]) if self._file is None else self._file.memory
        self._follows: dict[Entry, Entry] = {}
        for buffer in self.buffers:
            of = sorted(number for other, number in sizes if other is buffer)
            pairs = pairwise([*of, of[0]])
            self._follows |= {(buffer, one): (buffer, other) for one, other in pairs}
        if link is not None and not in_file:
            pinned(link, self._memory, "copies of what runs write take longer")

    def memory(self, entry: Entry) -> np.ndarray | None:
        """The bytes of an entry; None for one that has no room here."""
        if entry not in self._places:
            return None
        return np.frombuffer(self._memory, np.uint8, self.sizes[entry], self._places[entry])

    def look_ahead(self, entry: Entry, reads: Window) -> None:
        """Have what is looked at of the next entry of a buffer in memory soon; behind the last one
        comes the first.

        Args:
            entry: the one that is in use.
            reads: what is looked at of each.
        """
        following = self._follows.get(entry, entry)
        if self._file is None or following == entry:
            return
        spec, size = entry[0].spec, self.sizes[following]
        copies = size // max(1, spec_bytes(spec))
        starts, length = pieces((copies, *spec.shape), ((0, copies), *reads))
        item = size // math.prod((copies, *spec.shape))
        place = self._places[following]
        self._file.expect([place + item * start for start in starts], item * length)

    def settle(self) -> None:
        """Wait until nothing that is queued reads the memory any more."""
        if self._link is not None:
            self._link.reach(self._link.computed())

    def close(self) -> None:
        """Unpin. The entries are elsewhere by now."""
        if self._link is not None:
            self._link.close()
        if self._file is not None:
            self._file.close()


class _File:
    """A file that is mapped and has no name."""

    def __init__(self, num_bytes: int) -> None:
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
            self.memory = mmap.mmap(file.fileno(), num_bytes)
            self._file = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._file)
        # The system makes a caller wait while it has much to do.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="popxl_torch_ahead")

    def expect(self, starts: Sequence[int], length: int) -> None:
        """Have pieces of one length in memory soon; nothing waits for them."""
        self._thread.submit(self._ask, starts, length)

    def _ask(self, starts: Sequence[int], length: int) -> None:
        for start in starts:
            for place in range(start, start + length, _AT_ONCE):
                size = min(_AT_ONCE, start + length - place)
                os.posix_fadvise(self._file, place, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """End the thread. What is mapped stays."""
        self._thread.shutdown(cancel_futures=True)
        self._close()
