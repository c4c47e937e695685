"""Division."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Div")


@op_debug_context
def div(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Quotient ``lhs / rhs``, element by element; integers divide towards zero.

    Args:
        lhs: any shape.
        rhs: same dtype, broadcastable with ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Div", "div_out", lhs=lhs, rhs=rhs)


@gradient("Div")
def _gradients(site: GradSite) -> Grads:
    return [
        lambda: site.grad() / site.input(1),
        lambda: -(site.grad() * site.output() / site.input(1)),
    ]
