"""Quantised matrices for tests, rounded by plain formulas that read one element at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

FORMATS = ("int8", "int4")
STORED = (*FORMATS, "bfloat16")
GROUP = 32


@dataclass
class HostMatrix:
    """An array (n, k) or its shards, as `popxl_storage` describes it to the engine.

    Attributes:
        numbers: (n, k) float64, exactly what codes and scales stand for.
    """

    format: str
    codes: np.ndarray
    scales: np.ndarray | None
    numbers: np.ndarray
    cut: str = ""
    shards: int = 1
    dtype: Any = field(default_factory=lambda: np.dtype(np.float16))

    @property
    def popxl_storage(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "codes": self.codes,
            "scales": self.scales,
            "cut": self.cut,
            "shards": self.shards,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        return np.asarray(self).shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        n, k = self.numbers.shape
        whole = self.numbers
        if self.cut == "columns":
            whole = whole.reshape(self.shards, n // self.shards, k).transpose(0, 2, 1)
        elif self.cut == "rows":
            whole = whole.reshape(n, self.shards, k // self.shards).transpose(1, 2, 0)
        whole = whole[0] if self.cut and self.shards == 1 else whole
        return whole.astype(dtype or self.dtype)


def host_matrix(rng: Generator, format: str, n: int, k: int, cut: str = "", r: int = 1):
    """A random matrix whose codes take every value."""
    if format == "bfloat16":
        numbers = torch.from_numpy(rng.normal(size=(n, k))).bfloat16()
        codes = numbers.view(torch.uint16).numpy()
        return HostMatrix(format, codes, None, numbers.double().numpy(), cut, r)
    if format == "int8":
        codes = rng.integers(-127, 128, (n, k)).astype(np.int8)
        scales = rng.uniform(0.001, 0.02, n).astype(np.float32)
        numbers = codes * scales[:, None].astype(np.float64)
    else:
        codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
        scales = rng.uniform(-0.1, 0.1, (n, k // GROUP)).astype(np.float16)
        numbers = np.empty((n, k))
        for j in range(k):
            byte = codes[:, j // GROUP * 16 + j % 16]
            nibble = byte >> 4 if j % GROUP >= 16 else byte & 15
            numbers[:, j] = (nibble.astype(int) - 8) * scales[:, j // GROUP].astype(np.float64)
    return HostMatrix(format, codes, scales, numbers, cut, r)


def rounded_groups(x: np.ndarray) -> np.ndarray:
    """x (m, k) as int8 with a scale for each 32 elements of a row, back in float64."""
    groups = x.reshape(len(x), -1, GROUP).astype(np.float64)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 127
    codes = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
    return (np.rint(codes) * scale).reshape(x.shape)
