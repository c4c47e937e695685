"""4-bit group quantisation: codes 0..15 with a scale and a bias for each group of values.

Codes q0 q1 q2 q3 of four consecutive values are one uint16, the first in the top four bits. A
value is q * scale + bias in float16.
"""

from __future__ import annotations

import numpy as np
import popxl
from popart import popart_exception
from popxl import ops

__all__ = [
    "group_quantize_compress_numpy",
    "group_quantize_decompress",
    "group_quantize_decompress_numpy",
]

_SHIFTS = np.array([12, 8, 4, 0], dtype=np.uint16)


def group_quantize_decompress(
    t: popxl.Tensor, group_scale: popxl.Tensor, group_bias: popxl.Tensor, dim: int = -1
) -> popxl.Tensor:
    """Values from codes, in the graph.

    Args:
        t: (rows, groups, group_size / 4), uint16.
        group_scale: (rows, groups, 1) or (rows, groups), float16.
        group_bias: as `group_scale`.
        dim: 0 or -2 to transpose the result; else it stays.

    Returns:
        (rows, groups * group_size) in the dtype of the scale, or its transpose.

    Raises:
        NotImplementedError: `t` is not of rank 3.
        ValueError: scale and bias do not fit.
    """
    if t.rank != 3:
        raise NotImplementedError(f"group_quantize_decompress: t of rank 3, got {t.shape}")
    rows, groups, words = t.shape
    scale, bias = (_column(x, (rows, groups)) for x in (group_scale, group_bias))
    packed = ops.cast(t, popxl.int32).reshape((rows, groups, words, 1))
    nibbles = [packed / (1 << int(shift)) % 16 for shift in _SHIFTS]
    codes = ops.concat(nibbles, axis=-1).reshape((rows, groups, 4 * words))
    values = ops.cast(codes, scale.dtype) * scale + bias
    values = values.reshape((rows, groups * 4 * words))
    return values.transpose((1, 0)) if dim in (0, -2) else values


def _column(x: popxl.Tensor, sizes: tuple[int, int]) -> popxl.Tensor:
    """A scale or bias with a last axis of 1."""
    if x.rank not in (2, 3) or tuple(x.shape[:2]) != sizes:
        raise ValueError(
            f"group_quantize_decompress: scale and bias are {(*sizes, 1)} or {sizes}, got {x.shape}"
        )
    if x.rank == 3 and x.shape[2] != 1:
        raise popart_exception(
            f"group_quantize_decompress: one scale and bias for each group, got {x.shape}"
        )
    return x.reshape((*sizes, 1))


def group_quantize_decompress_numpy(
    t: np.ndarray, group_scale: np.ndarray, group_bias: np.ndarray, dim: int
) -> np.ndarray:
    """Values from codes, on the host.

    Args:
        t: (*rest, groups, group_size / 4), uint16.
        group_scale: (*rest, groups, 1), float16.
        group_bias: as `group_scale`.
        dim: where the quantised axis goes, with `list.insert`'s meaning if not -1.

    Returns:
        float16, the quantised axis of groups * group_size.
    """
    codes = (t[..., None] >> _SHIFTS) & np.uint16(15)
    codes = codes.reshape(*t.shape[:-1], t.shape[-1] * 4)
    values = codes.astype(np.float16) * group_scale.astype(np.float16)
    values = values + group_bias.astype(np.float16)
    values = values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])
    if dim == -1:
        return values
    axes = list(range(values.ndim - 1))
    axes.insert(dim, values.ndim - 1)
    return values.transpose(axes)


def group_quantize_compress_numpy(
    t: np.ndarray, group_size: int, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and biases of an array.

    Args:
        t: values, all finite.
        group_size: values in a group, a multiple of 4.
        dim: the axis that is cut in groups.

    Returns:
        Codes (*rest, groups, group_size / 4) uint16, scales and biases (*rest, groups, 1)
        float16, `rest` being the other axes in order.

    Raises:
        ValueError: a value is not finite, or groups don't divide the axis.
    """
    if not np.isfinite(t).all():
        raise ValueError("group_quantize_compress_numpy: all values must be finite")
    if dim != -1:
        t = np.moveaxis(t, dim, -1)
    groups = t.reshape(*t.shape[:-1], t.shape[-1] // group_size, group_size)
    largest = groups.max(-1, keepdims=True).astype(np.float16)
    bias = groups.min(-1, keepdims=True).astype(np.float16)
    scale = ((largest - bias) / np.float16(15)).astype(np.float16)
    # A constant group is its bias; any other divisor than 0 gives codes of 0.
    divisor = np.where(scale == 0, np.float16(1), scale)
    codes = np.clip(np.rint((groups - bias) / divisor), 0, 15).astype(np.uint16)
    codes = codes.reshape(*codes.shape[:-1], group_size // 4, 4) << _SHIFTS
    return np.bitwise_or.reduce(codes, axis=-1), scale, bias
