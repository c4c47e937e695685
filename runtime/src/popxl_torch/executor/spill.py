"""Entries of remote buffers in a file, where the memory of the device is too small for them.

The file is mapped, so an entry is used where it lies, like any other; its pages are the system's to
write out and to read again. It has no name: nothing is left of it when the process ends, however
that happens. Its folder is that of temporary files (``TMPDIR``).
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from popxl_torch.executor.streaming import Entry
from popxl_torch.ir.errors import OutOfMemoryException


class Spill:
    """A file with room for some entries."""

    def __init__(self, sizes: Mapping[Entry, int]) -> None:
        """Take room for entries of so many bytes; they are zeros.

        Raises:
            OutOfMemoryException: there is no room on the disk.
        """
        self.sizes = dict(sizes)
        lengths = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes.values()]
        total = sum(lengths)
        starts = [0, *accumulate(lengths)]
        self._places = dict(zip(sizes, starts, strict=False))
        with tempfile.TemporaryFile(prefix="popxl-") as file:
            try:
                # Without its blocks a mapped file that meets a full disk would kill the process.
                os.posix_fallocate(file.fileno(), 0, total)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise
                raise OutOfMemoryException(
                    f"device_memory has no room for {total:,} bytes of remote buffers that runs"
                    f" write, and {tempfile.gettempdir()} has none either: {error.strerror}; the"
                    " environment variable TMPDIR names another folder"
                ) from error
            self._memory = mmap.mmap(file.fileno(), total)

    def memory(self, entry: Entry) -> np.ndarray | None:
        """The bytes of an entry; None for one that is not in the file."""
        if entry not in self._places:
            return None
        return np.frombuffer(self._memory, np.uint8, self.sizes[entry], self._places[entry])
