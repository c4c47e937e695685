"""Initial values that are drawn when they are needed, not when a graph is built.

A model of six billion parameters is built with `empty=True` and filled from a file: drawing
its random initial values would take minutes and gigabytes for nothing.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import numpy as np

# Enough elements to keep the loop's overhead small, few enough to stay in the cache.
_DRAW_CHUNK = 1 << 16


@dataclass(frozen=True)
class LazyInitialiser(abc.ABC):
    """A callable that makes an array whose shape and dtype are known beforehand."""

    shape: tuple[int, ...]

    dtype = np.dtype("float32")

    @abc.abstractmethod
    def __call__(self) -> np.ndarray:
        """The array, of `shape` and `dtype`."""


@dataclass(frozen=True)
class Full(LazyInitialiser):
    """One value everywhere, without memory behind it (all strides are 0)."""

    value: float

    def __call__(self) -> np.ndarray:
        return np.broadcast_to(self.dtype.type(self.value), self.shape)


@dataclass(frozen=True)
class TruncatedNormal(LazyInitialiser):
    """A normal distribution of the given scale, cut off at `bound` standard deviations.

    Values beyond the bound are drawn again, which gives the same distribution as the inverse
    of the cumulative function at a fraction of its time.
    """

    scale: float = 0.02
    bound: float = 2.0

    def __call__(self) -> np.ndarray:
        values = np.empty(math.prod(self.shape), self.dtype)
        for start in range(0, values.size, _DRAW_CHUNK):
            part = values[start : start + _DRAW_CHUNK]
            part[:] = self._draw(part.size)
        values *= self.scale
        return values.reshape(self.shape)

    def _draw(self, count: int) -> np.ndarray:
        # The global state, because programs make their weights reproducible by seeding it.
        draw = np.random.standard_normal
        values = draw(count)
        while (outside := np.abs(values) > self.bound).any():
            values[outside] = draw(int(outside.sum()))
        return values
