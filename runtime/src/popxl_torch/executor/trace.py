"""Where time and bytes go, by region: the outermost name scopes of the main graph and its branches.

The trace file is JSON, rewritten after each run; figures are sums since the session was made:

    {"version": 1, "runs": int, "total_ms": float, "device": str, "steps": int,
     "regions": [{"name": str, "runs": int, "loaded_bytes": int, "copied_bytes": int,
                  "read_bytes": int, "stall_ms": float, "ms": float}]}

``runs`` of a region that consists of one loop are its iterations. ``loaded_bytes`` are bytes of
remote memory addressed by loads, ``copied_bytes`` what was copied for them, ``read_bytes`` what was
read from files for them (see executor/streaming.py) and ``stall_ms`` the part of ``ms`` that the
host spent waiting for reads. A plan's steps before the first scope and between scopes belong to
the region named "".
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Region:
    """Sums of one region."""

    name: str
    runs: int = 0
    loaded_bytes: int = 0
    copied_bytes: int = 0
    read_bytes: int = 0
    stall_ms: float = 0.0
    ms: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Its entry in the trace file."""
        return {name: getattr(self, name) for name in self.__slots__}


class Trace:
    """Collects the sums, if there is a file to write. ``enter`` is called between regions."""

    def __init__(self, path: str, device: str) -> None:
        self.path = path
        self.active = bool(path)
        self.device = device
        self.regions: dict[str, Region] = {}
        self.runs = 0
        self.total_ms = 0.0
        self.steps = 0
        self.current = Region("")
        self._since = 0.0

    def start(self) -> None:
        """A run begins."""
        self._begin = self._since = time.perf_counter()

    def enter(self, name: str | None, runs: int) -> None:
        """The current region ends; ``name`` begins, or the run's work ends if None."""
        now = time.perf_counter()
        self.current.ms += (now - self._since) * 1e3
        self._since = now
        if name is None:
            return
        self.current = self.regions.setdefault(name, Region(name))
        self.current.runs += runs

    def count(self, loaded_bytes: int, copied: bool) -> None:
        """A load in the current region."""
        self.current.loaded_bytes += loaded_bytes
        if copied:
            self.current.copied_bytes += loaded_bytes

    def count_brought(self, read_bytes: int, copied_bytes: int, waited_s: float) -> None:
        """What was read from files and copied to the device for the current region, and how long
        the host waited for that."""
        self.current.read_bytes += read_bytes
        self.current.copied_bytes += copied_bytes
        self.current.stall_ms += waited_s * 1e3

    def finish(self) -> None:
        """A run ends; the file is rewritten if there is one."""
        self.runs += 1
        self.total_ms += (time.perf_counter() - self._begin) * 1e3
        if self.path:
            self.write()

    def as_dict(self) -> dict[str, object]:
        """The contents of the trace file."""
        return {
            "version": 1,
            "runs": self.runs,
            "total_ms": self.total_ms,
            "device": self.device,
            "steps": self.steps,
            "regions": [region.as_dict() for region in self.regions.values()],
        }

    def write(self) -> None:
        """Write the file under a temporary name, then put it in place."""
        temporary = Path(f"{self.path}.{os.getpid()}.part")
        temporary.write_text(json.dumps(self.as_dict()))
        temporary.replace(self.path)
