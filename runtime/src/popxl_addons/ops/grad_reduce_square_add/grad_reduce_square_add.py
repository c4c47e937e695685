"""Sum of squares of a gradient."""

from __future__ import annotations

import popxl

__all__ = ["grad_reduce_square_add"]


def grad_reduce_square_add(
    t: popxl.Tensor, loss_scaling: int | float | popxl.Tensor
) -> popxl.Tensor:
    """sum(t**2) / loss_scaling**2 in float32. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.grad_reduce_square_add is not implemented yet")
