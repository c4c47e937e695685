"""Sum of squares of a gradient."""

from __future__ import annotations

import popxl
from popxl import ops

__all__ = ["grad_reduce_square_add"]


def grad_reduce_square_add(
    t: popxl.Tensor, loss_scaling: int | float | popxl.Tensor
) -> popxl.Tensor:
    """sum(t**2) / loss_scaling**2, a float32 scalar computed in float32.

    Args:
        t: any shape.
        loss_scaling: a number, or a tensor with one element.
    """
    x = ops.cast(t, popxl.float32)
    if not isinstance(loss_scaling, popxl.Tensor):
        loss_scaling = popxl.constant(loss_scaling, popxl.float32, "loss_scaling")
    scale = ops.cast(loss_scaling, popxl.float32).reshape(())
    return ops.sum(x * x) / (scale * scale)
