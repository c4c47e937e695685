"""Progress of work whose bytes can be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]
"""Called with the bytes that are done since the last call."""


@contextmanager
def byte_progress(total_bytes: int, enabled: bool, what: str | None = None) -> Iterator[Advance]:
    """Gives a function to call with the bytes done; shows a bar on a terminal.

    Args:
        total_bytes: bytes of the whole work.
        enabled: False shows nothing anywhere.
        what: name before the bar.
    """
    from tqdm import tqdm

    disable = None if enabled else True  # None: only where the output is a terminal
    with tqdm(total=total_bytes, desc=what, unit="B", unit_scale=True, disable=disable) as bar:
        yield bar.update
