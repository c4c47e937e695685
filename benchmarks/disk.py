"""What the disk gives past the page cache: direct reads of 4 MiB, four of them under way."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 4 << 20
IN_FLIGHT = 4


def direct_read_gb_per_s(paths: Iterable[Path], most_bytes: int = 1 << 30) -> float:
    """Bytes a second, in 1e9, of direct reads of files, each from its beginning.

    Args:
        paths: The files.
        most_bytes: How much to read.

    Raises:
        OSError: The filesystem has no direct reads.
    """
    pieces: list[tuple[int, int]] = []
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
            size = os.fstat(opened[-1]).st_size
            pieces += [(opened[-1], at) for at in range(0, size, PIECE_BYTES)]
        pieces = pieces[: max(1, most_bytes // PIECE_BYTES)]
        memory = [mmap.mmap(-1, PIECE_BYTES) for _ in range(IN_FLIGHT)]

        def read(lane: int) -> int:
            return sum(os.preadv(fd, [memory[lane]], at) for fd, at in pieces[lane::IN_FLIGHT])

        start = time.perf_counter()
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            total = sum(threads.map(read, range(IN_FLIGHT)))
        return total / (time.perf_counter() - start) / 1e9
    finally:
        for fd in opened:
            os.close(fd)
