"""What the process has of the host's memory, and what there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def anonymous_bytes() -> int:
    """Anonymous memory of this process; 0 where the system does not tell."""
    return _kibibytes("/proc/self/status", "RssAnon:")


def available_bytes() -> int:
    """Memory of the host that may be taken: what the system has, within its control group."""
    free = _kibibytes("/proc/meminfo", "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def _kibibytes(path: str, key: str) -> int:
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    return 0
