"""Windows: parts of tensors, with a start and a stop on each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Window = tuple[tuple[int, int], ...]
"""A start and a stop on each axis."""


def pieces(shape: Sequence[int], window: Window) -> tuple[list[int], int]:
    """Where a window's pieces begin in a row-major array, and the length of each, in elements."""
    cut = [n for n, part in enumerate(zip(window, shape, strict=True)) if part[0] != (0, part[1])]
    if not cut:
        return [0], math.prod(shape)
    axis = cut[-1]
    begins = np.zeros(1, np.int64)
    for n, (start, stop) in enumerate(window[: axis + 1]):
        places = np.arange(start, stop if n < axis else start + 1) * math.prod(shape[n + 1 :])
        begins = np.add.outer(begins, places).ravel()
    start, stop = window[axis]
    return begins.tolist(), (stop - start) * math.prod(shape[axis + 1 :])
