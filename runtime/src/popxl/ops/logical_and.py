"""Logical and."""

from __future__ import annotations

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import cast_if_needed, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("And", comparison)


@op_debug_context
def logical_and(lhs: Tensor, rhs: Tensor) -> Tensor:
    """True where both are; operands are cast to bool.

    Args:
        lhs: any shape.
        rhs: broadcastable with ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: the shapes do not broadcast.
    """
    check_in_graph(get_current_context().graph, lhs=lhs, rhs=rhs)
    check_tensor_ipu_and_tile_set(lhs=lhs, rhs=rhs)
    lhs, rhs = cast_if_needed(lhs, dtypes.bool), cast_if_needed(rhs, dtypes.bool)
    return binary("And", "and_out", lhs=lhs, rhs=rhs)


@gradient("And")
def _gradients(site: GradSite) -> Grads:
    raise site.refusal("And does not have a valid grad op")
