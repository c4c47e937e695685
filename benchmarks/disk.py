"""What files give: reads of 4 MiB, four of them under way, past the page cache or through it."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

PIECE_BYTES = 4 << 20
IN_FLIGHT = 4
LEAD_S = 1.0
SPAN_S = 2.0

Piece = tuple[int, int]
"""An open file, and a place in it."""


def direct_read_gb_per_s(paths: Iterable[Path]) -> float:
    """:func:`read_gb_per_s` past the page cache."""
    return read_gb_per_s(paths, os.O_DIRECT)


def read_gb_per_s(
    paths: Iterable[Path], flags: int = 0, lead_s: float = LEAD_S, span_s: float = SPAN_S
) -> float:
    """Bytes a second, in 1e9, of reads of files, from a random place on, round and round.

    Args:
        paths: The files.
        flags: With which they are opened.
        lead_s: Seconds of reading that do not count: what others had begun to read ends meanwhile.
        span_s: Seconds that count.

    Raises:
        OSError: The filesystem has no direct reads, and they are asked for.
    """
    with _opened(paths, flags) as pieces:
        order = count(random.randrange(len(pieces)))
        begin = time.perf_counter() + lead_s
        end = begin + span_s

        def read(_: int) -> int:
            """One of those that read at a time; bytes that count."""
            memory, total = _large_page(), 0
            while time.perf_counter() < end:
                file, place = pieces[next(order) % len(pieces)]
                size = os.preadv(file, [memory], place)
                total += size if begin <= time.perf_counter() < end else 0
            return total

        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            return sum(threads.map(read, range(IN_FLIGHT))) / span_s / 1e9


def _large_page() -> memoryview:
    """Memory for a piece, in large pages where there are some: a disk may give a third without."""
    memory = mmap.mmap(-1, 2 * PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % PIECE_BYTES
    return memoryview(memory)[start : start + PIECE_BYTES]


@contextmanager
def _opened(paths: Iterable[Path], flags: int) -> Iterator[list[Piece]]:
    """The pieces of files, one behind the other."""
    pieces: list[Piece] = []
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_RDONLY | flags))
            size = os.fstat(opened[-1]).st_size
            pieces += [(opened[-1], at) for at in range(0, size, PIECE_BYTES)]
        yield pieces
    finally:
        for file in opened:
            os.close(file)
