"""Removal of axes of length 1."""

from __future__ import annotations

from typing import List, Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops.reshape import reshape
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


@op_debug_context
def squeeze(t: Tensor, axes: Optional[List[int]] = None) -> Tensor:
    """``t`` without ``axes``; made of a reshape, so always a new tensor.

    Args:
        t: any shape.
        axes: axes of length 1, negative ones count from the end; by default all of them.

    Raises:
        AttributeError: ``t`` is not a Tensor.
        TypeError: ``axes`` is not a list.
        ValueError: ``t`` is not in the current graph; an axis is repeated, does not exist, or
            does not have length 1.
    """
    shape, rank = t.shape, t.rank
    if axes is None:
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    removed = [axis + rank if axis < 0 else axis for axis in axes]
    check_in_graph(get_current_context().graph, t=t)
    if len(set(removed)) != len(removed):
        raise ValueError(f"The axes of a squeeze must be unique: {axes}.")
    for axis in removed:
        if not 0 <= axis < rank:
            raise ValueError(f"squeeze: {t} has no axis {axis}.")
        if shape[axis] != 1:
            raise ValueError(f"squeeze: axis {axis} of {t} has size {shape[axis]}, not 1.")
    return reshape(t, tuple(size for axis, size in enumerate(shape) if axis not in removed))
