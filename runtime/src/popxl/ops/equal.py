"""Equality."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("Equal", comparison)


@op_debug_context
def equal(lhs: Tensor, rhs: Tensor) -> Tensor:
    """True where ``lhs`` equals ``rhs``, element by element.

    Args:
        lhs: any shape.
        rhs: same dtype, broadcastable with ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Equal", "equal_out", lhs=lhs, rhs=rhs)


@gradient("Equal")
def _gradients(site: GradSite) -> Grads:
    raise site.refusal("Equal does not have a valid grad op")
