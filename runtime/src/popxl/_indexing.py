"""``tensor[key]``, made of slice, subsample, squeeze, gather and where."""

from __future__ import annotations

from typing import Any

import numpy as np
from popxl import dtypes
from popxl.tensor import Tensor, constant
from popxl.utils import to_numpy

_WRONG_KEY = "Only integers, slices (`:`), tensors and arrays can be used as indices of a tensor"


def index(tensor: Tensor, key: Any) -> Tensor:
    """``tensor[key]``.

    Args:
        tensor: any shape.
        key: ints and slices (alone or in a tuple) give a range, clipped as Python's slices are;
            an int tensor gathers rows; a bool tensor keeps the shape and zeroes what it does not
            choose; arrays and nested lists become constants and are then treated as tensors.

    Raises:
        TypeError: any other key.
        ValueError: an int beyond the axis.
        popart_exception: more entries than axes.
    """
    if isinstance(key, (int, slice)) and not isinstance(key, bool):
        return _index_ranges(tensor, (key,))
    if isinstance(key, tuple) and all(isinstance(k, (int, slice)) for k in key):
        return _index_ranges(tensor, key)
    if isinstance(key, (bool, str, float, np.generic)) or key is None or key is Ellipsis:
        raise TypeError(f"{_WRONG_KEY}, not {type(key).__name__} {key!r}.")
    return _index_tensor(tensor, key if isinstance(key, Tensor) else _constant(key))


def _index_ranges(tensor: Tensor, key: tuple[int | slice, ...]) -> Tensor:
    """A slice over the leading axes, then strides, then the axes of ints dropped."""
    from popxl.ops.slice import slice as slice_op
    from popxl.ops.squeeze import squeeze
    from popxl.ops.subsample import subsample

    parts = [_as_slice(k) if isinstance(k, int) else k for k in key]
    steps = [1 if part.step is None else int(part.step) for part in parts]
    signs = [-1 if step < 0 else 1 for step in steps]
    result = slice_op(
        tensor,
        start=[None if part.start is None else int(part.start) for part in parts],
        stop=[None if part.stop is None else int(part.stop) for part in parts],
        step=signs,
        axis=list(range(len(parts))),
    )
    strides = [abs(step) for step in steps]
    if any(stride != 1 for stride in strides):
        result = subsample(result, strides)
    dropped = [axis for axis, k in enumerate(key) if isinstance(k, int)]
    return squeeze(result, dropped) if dropped else result


def _as_slice(position: int) -> slice:
    """The range of one position; the last one has no stop that is not 0."""
    return slice(position, None if position == -1 else position + 1)


def _constant(key: Any) -> Tensor:
    if not hasattr(key, "__iter__") and not hasattr(key, "__array__"):
        raise TypeError(f"{_WRONG_KEY}, not {type(key).__name__} {key!r}.")
    return constant(to_numpy(key))


def _index_tensor(tensor: Tensor, key: Tensor) -> Tensor:
    from popxl.ops.gather import gather
    from popxl.ops.where import where

    if key.dtype.is_int:
        return gather(tensor, key, axis=0)
    if key.dtype is dtypes.bool:
        return where(key, tensor, constant(0, tensor.dtype))
    raise TypeError(f"{_WRONG_KEY}; {key} has dtype {key.dtype}.")
