"""What the process has of the host's memory, and what there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

STATUS, MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def anonymous_bytes() -> int:
    """Anonymous memory of this process; 0 where the system does not tell."""
    return _number(STATUS, "RssAnon:") << 10


def available_bytes() -> int:
    """Memory of the host that may be taken: what the system has, within its control group. Pages of
    files that were not used lately make room when they must."""
    free = _number(MEMORY, "MemAvailable:") << 10
    with suppress(OSError, ValueError):
        limit = int((GROUP / "memory.max").read_text())
        used = int((GROUP / "memory.current").read_text())
        free = min(free, limit - used + _number(GROUP / "memory.stat", "inactive_file"))
    return free


def _number(path: Path, key: str) -> int:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.split()[:1] == [key]:
                return int(line.split()[1])
    return 0
