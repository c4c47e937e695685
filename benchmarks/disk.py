"""What files give: reads of 4 MiB, four of them under way, past the page cache or through it."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 4 << 20
IN_FLIGHT = 4
RUN_PIECES = 16
"""Pieces that are read one behind the other, where not all are."""


def direct_read_gb_per_s(paths: Iterable[Path], most_bytes: int = 1 << 30) -> float:
    """:func:`read_gb_per_s` past the page cache."""
    return read_gb_per_s(paths, os.O_DIRECT, most_bytes)


def read_gb_per_s(paths: Iterable[Path], flags: int = 0, most_bytes: int = 1 << 30) -> float:
    """Bytes a second, in 1e9, of reads of files.

    Args:
        paths: The files.
        flags: With which they are opened.
        most_bytes: How much to read; of larger files, parts at even distances.

    Raises:
        OSError: The filesystem has no direct reads, and they are asked for.
    """
    pieces: list[tuple[int, int]] = []
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_RDONLY | flags))
            size = os.fstat(opened[-1]).st_size
            pieces += [(opened[-1], at) for at in range(0, size, PIECE_BYTES)]
        pieces = _sample(pieces, max(1, most_bytes // PIECE_BYTES))
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


def _sample(pieces: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """So many pieces: all, or runs of them at even distances."""
    runs = [pieces[at : at + RUN_PIECES] for at in range(0, len(pieces), RUN_PIECES)]
    wanted = min(len(runs), max(1, count // RUN_PIECES))
    chosen = [runs[n * len(runs) // wanted] for n in range(wanted)]
    return [piece for run in chosen for piece in run][:count]
