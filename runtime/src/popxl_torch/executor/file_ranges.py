"""Which bytes arrays are: of which files, for views of read-only ``np.memmap`` objects, or else of
the process's own memory."""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [start, end) of a file; of the process's memory, by address, if there is no path."""

    path: Path | None
    start: int
    end: int


class MappedFiles:
    """The files behind arrays, found by address."""

    def __init__(self) -> None:
        self._maps: dict[int, tuple[int, FileRange, mmap.mmap]] = {}

    def add(self, array: object) -> None:
        """Take note of the file that an array is a view of, if it is one of a file's.

        An array that names its storage in ``popxl_storage`` counts by what is stored.
        """
        storage = getattr(array, "popxl_storage", None)
        for part in (array,) if storage is None else (storage["codes"], storage["scales"]):
            root = _root(part)
            if root is not None:
                mapped: Any = root.base
                start = _address(root)
                whole = FileRange(Path(str(root.filename)), root.offset, root.offset + root.nbytes)
                self._maps[start] = (start + root.nbytes, whole, mapped)

    def find(self, array: np.ndarray) -> FileRange | None:
        """The bytes that an array spans, with what its strides leave out; None if its memory is
        not a file's, or if more than half of them are left out."""
        span = memory_range(array)
        if span is None:
            return None
        low, high = span.start, span.end
        for start, (end, whole, _) in self._maps.items():
            if start <= low and high <= end:
                shift = whole.start - start
                return FileRange(whole.path, low + shift, high + shift)
        return None

    def check_sizes(self) -> None:
        """OSError if a file has become shorter: the system kills whoever reads behind its end."""
        for _, whole, mapped in self._maps.values():
            if (found := mapped.size()) < whole.end:
                raise too_short(whole.path, found, whole.end)


def too_short(path: Path | None, found: int, wanted: int) -> OSError:
    """The error of a file that was long enough before."""
    what = f"the file has become shorter: {found:,} bytes where {wanted:,} are needed"
    return OSError(errno.EIO, what, str(path))


def memory_range(array: np.ndarray) -> FileRange | None:
    """The process's memory that an array spans; None if its strides leave out more than half."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return None if high - low > 2 * _distinct_bytes(array) else FileRange(None, low, high)


def _root(array: object) -> np.memmap | None:
    """The map that an array is a view of, if nothing can be written through it."""
    found = None
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            found = array
        array = array.base
    is_file = found is not None and found.filename is not None and found.mode == "r"
    return found if is_file and isinstance(array, mmap.mmap) else None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _distinct_bytes(array: np.ndarray) -> int:
    count = 1
    for size, stride in zip(array.shape, array.strides, strict=True):
        count *= size if stride else 1
    return count * array.itemsize
