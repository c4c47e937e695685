"""A cap on all memory of a process, its pages in the page cache included, where one can be had.

Linux counts both for a control group. Who may make one differs: root with the first or the second
version of the interface, a user's own systemd, or nobody.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

GROUPS = Path("/sys/fs/cgroup")
REMOVE_WITHIN_S = 5.0


@dataclass(frozen=True)
class Cap:
    """A cap that holds.

    Attributes:
        kind: What keeps it.
        launcher: A program that runs Python within it, for :class:`benchmarks.workers.Worker`.
    """

    kind: str
    launcher: Path


@contextmanager
def memory_cap(limit_bytes: int, groups: Path = GROUPS) -> Iterator[Cap | None]:
    """A cap for as long as the context is open; None where there is no way to one.

    Args:
        limit_bytes: Most memory.
        groups: Where the control groups are mounted.
    """
    with TemporaryDirectory(prefix="memory_cap_") as folder:
        launcher = Path(folder) / "python"
        for kind, limit, parent in (
            ("memory cgroup, version 1", "memory.limit_in_bytes", groups / "memory"),
            ("memory cgroup, version 2", "memory.max", groups),
        ):
            with _group(parent, limit, limit_bytes) as group:
                if group is not None:
                    _write(launcher, f"echo $$ > {shlex.quote(f'{group}/cgroup.procs')} && exec")
                    if _holds(launcher):
                        yield Cap(kind, launcher)
                        return
        properties = f"-p MemoryMax={limit_bytes} -p MemorySwapMax=0"
        _write(launcher, f"exec systemd-run --user --scope --quiet {properties} --")
        if shutil.which("systemd-run") and _holds(launcher):
            yield Cap("systemd-run --user --scope", launcher)
        else:
            yield None


@contextmanager
def _group(parent: Path, limit: str, limit_bytes: int) -> Iterator[Path | None]:
    """A control group below a parent, removed in the end; None if it cannot be made."""
    group = parent / f"magma_benchmark_{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if _limited(group, limit, limit_bytes) else None
    finally:
        _remove(group)


def _limited(group: Path, limit: str, limit_bytes: int) -> bool:
    if not (group / limit).is_file():  # a folder of its own making has none
        return False
    with suppress(OSError):
        (group / limit).write_text(str(limit_bytes))
        return True
    return False


def _remove(group: Path) -> None:
    """Removes a group as soon as its last process has ended."""
    until = time.monotonic() + REMOVE_WITHIN_S
    while time.monotonic() < until:
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


def _write(launcher: Path, before: str) -> None:
    launcher.write_text(f'#!/bin/sh\n{before} {shlex.quote(sys.executable)} "$@"\n')
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)


def _holds(launcher: Path) -> bool:
    """Whether Python starts, with the files that it inherits."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as answer:
        try:
            command = [launcher, "-c", f"import os; os.write({theirs}, b'x')"]
            subprocess.run(command, pass_fds=[theirs], capture_output=True, check=False)
        finally:
            os.close(theirs)
        return answer.read() == b"x"
