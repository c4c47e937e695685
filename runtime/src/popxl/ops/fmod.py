"""Remainder."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Fmod")


@op_debug_context
def fmod(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Remainder of ``lhs / rhs`` with the sign of ``lhs``, element by element.

    Args:
        lhs: any shape.
        rhs: same dtype, broadcastable with ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Fmod", "fmod_out", lhs=lhs, rhs=rhs)


@gradient("Fmod")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad(), None]
