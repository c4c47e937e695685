"""Which contents lie in which block of a table on the device: the host's side of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from execution.prompts import Array


class Blocks:
    """A few blocks with a content each, known by its bytes, or none.

    Where one must give way, it is the one that was not wanted for longest.
    """

    def __init__(self, count: int) -> None:
        """All of them empty."""
        self._keys: list[bytes | None] = [None] * count
        self._recent = list(range(count))  # the latest wanted at the end

    def place(self, contents: Sequence[Array], fill: Callable[[int, Array], None]) -> list[int]:
        """Puts contents into blocks, unless they are there.

        Args:
            contents: no more different ones than there are blocks.
            fill: writes a content into a block of the device.

        Returns:
            The block of each content.
        """
        keys = [_key(content) for content in contents]
        keyed = dict(zip(keys, contents, strict=True))
        # First those that are there, so that none of them gives way to another.
        for key in keyed:
            if key in self._keys:
                self._want(self._keys.index(key))
        for key, content in keyed.items():
            if key not in self._keys:
                block = self._recent[0]
                # If filling fails, nobody knows what the block has.
                self._keys[block] = None
                fill(block, content)
                self._keys[block] = key
                self._want(block)
        return [self._keys.index(key) for key in keys]

    def _want(self, block: int) -> None:
        self._recent.remove(block)
        self._recent.append(block)


def _key(content: Array) -> bytes:
    description = f"{content.shape} {content.dtype}".encode()
    return blake2b(description + np.ascontiguousarray(content).tobytes()).digest()
