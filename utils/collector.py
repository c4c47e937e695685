"""Python's collector of cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """No cycles are looked for meanwhile.

    A program that is built makes very many objects that all live on. Each time that there are many
    new ones, the collector goes through everything that the process has, libraries too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
