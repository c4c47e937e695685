"""How much memory a process needs at most, by kind, and what it reads from disk."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
COUNTERS = Path("/proc/self/io")
SAMPLE_EVERY_S = 0.02


def resident_bytes() -> dict[str, int]:
    """Resident memory of this process now: all of it, anonymous pages, pages of mapped files."""
    names = {"VmRSS": "total", "RssAnon": "anonymous", "RssFile": "mapped"}
    rows = (line.split() for line in STATUS.read_text().splitlines())
    return {names[row[0][:-1]]: int(row[1]) * 1024 for row in rows if row[0][:-1] in names}


def read_from_disk() -> int:
    """Bytes that this process has had read from disk, into memory of its own or the page cache."""
    rows = (line.split() for line in COUNTERS.read_text().splitlines())
    return next(int(row[1]) for row in rows if row[0] == "read_bytes:")


def drop_from_page_cache(path: Path) -> None:
    """Has a file's pages leave the page cache, so that whoever reads it next reads the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class PeakMemory:
    """Samples this process's memory in a thread while the context is open."""

    def __init__(self) -> None:
        self.bytes = dict.fromkeys(("total", "anonymous", "mapped"), 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def now(self) -> dict[str, int]:
        """The most so far."""
        self._sample()
        return dict(self.bytes)

    def _watch(self) -> None:
        while not self._done.is_set():
            self._sample()
            time.sleep(SAMPLE_EVERY_S)

    def _sample(self) -> None:
        for kind, size in resident_bytes().items():
            self.bytes[kind] = max(self.bytes[kind], size)
