"""How much memory a process needs at most, by kind."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
SAMPLE_EVERY_S = 0.02


def resident_bytes() -> dict[str, int]:
    """Resident memory of this process now: all of it, anonymous pages, pages of mapped files."""
    names = {"VmRSS": "total", "RssAnon": "anonymous", "RssFile": "mapped"}
    rows = (line.split() for line in STATUS.read_text().splitlines())
    return {names[row[0][:-1]]: int(row[1]) * 1024 for row in rows if row[0][:-1] in names}


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

    def _watch(self) -> None:
        while not self._done.is_set():
            self._sample()
            time.sleep(SAMPLE_EVERY_S)

    def _sample(self) -> None:
        for kind, size in resident_bytes().items():
            self.bytes[kind] = max(self.bytes[kind], size)
