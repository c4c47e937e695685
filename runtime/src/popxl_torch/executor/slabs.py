"""Slabs on the host: what is loaded together, and which parts of files or memory it is."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from popxl_torch.executor.file_ranges import FileRange
from popxl_torch.executor.file_reader import ALIGNMENT, FileReader, aligned
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
    """Anonymous memory of the host, which begins at a page; in large pages where there are some.

    A direct read names each page that it fills: with pages of 4 KiB a disk that gives 3.5 GB/s was
    seen to give 1.2.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel may be built without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


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
