"""Weights in 8 or 4 bits: how they are rounded, and how they stand for ordinary arrays.

Both formats are symmetric and keep the numbers of one output row together:

- ``int8``: codes in [-127, 127], one float32 scale for each row: its largest magnitude over 127.
- ``int4``: codes in [-8, 7], one float16 scale for each 32 neighbours of a row: that of largest
  magnitude gets the code -8. A group is 16 bytes: byte i holds element i in its low half and
  element i + 16 in its high one, each the code plus 8. (The scheme of ggml's Q4_0.)

Weights in bfloat16, which NumPy lacks, stand for arrays in the same way: their codes are the
numbers' bits, and there are no scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FORMATS = ("int8", "int4")
FORMAT_OF_CODES = {"int8": "int8", "uint8": "int4"}
"""By the type of the stored codes."""

GROUP = 32
"""Elements of a row that share a scale in int4."""

SCALE_SUFFIX = "_scale"
"""What stands behind a weight's name in the name of its scales."""

_ROWS = 256  # rows that are rounded at once


def quantise(weight: Array, format: str) -> tuple[Array, Array]:
    """Rounds a weight.

    Args:
        weight: (\\*out, in) of floats; any number of axes before the last.
        format: "int8" or "int4", for which ``in`` must be a multiple of `GROUP`.

    Returns:
        Codes, (\\*out, in) int8 or (\\*out, in / 2) uint8; scales, (\\*out) float32 or
        (\\*out, in / GROUP) float16.
    """
    flat = weight.reshape(-1, weight.shape[-1])
    pieces = (flat[i : i + _ROWS].astype(np.float32) for i in range(0, len(flat), _ROWS))
    parts = [_ROUND[format](piece) for piece in pieces]
    codes, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    outer = weight.shape[:-1]
    return codes.reshape(*outer, codes.shape[-1]), scales.reshape(outer + scales.shape[1:])


def dequantise(codes: Array, scales: Array | None, format: str) -> Array:
    """The numbers that codes and scales stand for, (\\*out, in) float32."""
    if scales is None:
        bits = codes.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if format == "int8":
        return codes.astype(np.float32) * scales[..., None]
    groups = codes.reshape(*scales.shape, GROUP // 2)
    both = np.concatenate([groups & 15, groups >> 4], axis=-1).astype(np.float32) - 8
    values: Array = both * scales[..., None].astype(np.float32)
    return values.reshape(*codes.shape[:-1], 2 * codes.shape[-1])


@dataclass(frozen=True)
class StoredPart:
    """Codes or scales of a weight, as they are stored."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def stored_shapes(shape: tuple[int, ...], format: str) -> tuple[StoredPart, StoredPart]:
    """How codes and scales of a weight of some shape look."""
    *outer, inner = shape
    if format == "int8":
        return StoredPart(shape, "int8"), StoredPart(tuple(outer), "float32")
    codes = StoredPart((*outer, inner // 2), "uint8")
    return codes, StoredPart((*outer, inner // GROUP), "float16")


def can_quantise(shape: tuple[int, ...], format: str) -> bool:
    """Whether a weight of this shape fits a format."""
    return len(shape) >= 2 and (format != "int4" or shape[-1] % GROUP == 0)


def _round_int8(rows: Array) -> tuple[Array, Array]:
    scales = np.abs(rows).max(axis=1) / 127
    return np.rint(rows * _inverse(scales)[:, None]).astype(np.int8), scales


def _round_int4(rows: Array) -> tuple[Array, Array]:
    groups = rows.reshape(len(rows), -1, GROUP)
    largest = np.abs(groups).argmax(axis=2)[..., None]
    scales = (np.take_along_axis(groups, largest, axis=2)[..., 0] / -8).astype(np.float16)
    codes = np.rint(groups * _inverse(scales.astype(np.float32))[..., None])
    nibbles = (np.clip(codes, -8, 7) + 8).astype(np.uint8)
    packed = nibbles[..., : GROUP // 2] | (nibbles[..., GROUP // 2 :] << 4)
    return packed.reshape(len(rows), -1), scales


def _inverse(scales: Array) -> Array:
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)


_ROUND = {"int8": _round_int8, "int4": _round_int4}


@dataclass(frozen=True)
class QuantisedWeight:
    """A quantised weight as an array: with shape, dtype and, where nobody knows better, numbers.

    It is an array (out, in) that can be cut into shards as :mod:`modelling.shards` cuts one. An
    engine that reads ``popxl_storage`` takes codes and scales as they are; to others it is the
    array that ``__array__`` makes.

    Attributes:
        format: "int8", "int4" or "bfloat16".
        codes: see :func:`quantise`, two axes.
        scales: likewise; None for bfloat16.
        outer: output axes while it is not cut.
        dtype: of the numbers it stands for.
        cut: "" for (out, in); "columns" for r shards of the outputs, (r, in, out/r); "rows" for r
            shards of the inputs, (r, in/r, out). One shard has no leading axis.
        shards: r.
    """

    format: str
    codes: Array
    scales: Array | None
    outer: tuple[int, ...]
    dtype: np.dtype[Any]
    cut: str = ""
    shards: int = 1

    @classmethod
    def of_stored(cls, format: str, codes: Array, scales: Array | None) -> QuantisedWeight:
        """From codes and scales of any number of output axes."""
        outer = codes.shape[:-1]
        codes = codes.reshape(-1, codes.shape[-1])
        if scales is None:
            return cls(format, codes, None, outer, np.dtype(np.float32))
        scales = scales.reshape(len(codes), *scales.shape[len(outer) :])
        return cls(format, codes, scales, outer, np.dtype(np.float16))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        out, inner = self.codes.shape
        inner *= 2 if self.format == "int4" else 1
        r = self.shards
        if not self.cut:
            return (*self.outer, inner)
        shape = (r, inner, out // r) if self.cut == "columns" else (r, inner // r, out)
        return shape[1:] if r == 1 else shape

    @property
    def popxl_storage(self) -> Mapping[str, Any]:
        """What an engine needs to take it as it is."""
        return {
            "format": self.format,
            "codes": self.codes,
            "scales": self.scales,
            "cut": self.cut,
            "shards": self.shards,
        }

    def astype(self, dtype: npt.DTypeLike) -> QuantisedWeight:
        """The same codes, standing for numbers of another type."""
        return replace(self, dtype=np.dtype(dtype))

    def reshape(self, out: int, inner: int) -> QuantisedWeight:
        """With all output axes joined to one."""
        assert (out, inner) == (len(self.codes), self.shape[-1]), "only outputs can be joined"
        return replace(self, outer=(out,))

    def cut_into(self, cut: str, shards: int) -> QuantisedWeight:
        """Its shards: "columns" of the outputs or "rows" of the inputs."""
        return replace(self, cut=cut, shards=shards)

    def __array__(self, dtype: npt.DTypeLike = None, copy: bool | None = None) -> Array:
        """The numbers, rounded to ``dtype``."""
        whole = dequantise(self.codes, self.scales, self.format)
        out, inner = whole.shape
        r = self.shards
        if self.cut == "columns":
            whole = whole.reshape(r, out // r, inner).transpose(0, 2, 1)
        elif self.cut == "rows":
            whole = whole.reshape(out, r, inner // r).transpose(1, 2, 0)
        return whole.reshape(self.shape).astype(dtype or self.dtype, copy=False)
