"""Square root."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Sqrt")


@op_debug_context
def sqrt(t: Tensor) -> Tensor:
    """Square root of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Sqrt", t, "sqrt_out")


@gradient("Sqrt")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * 0.5 / site.output()]
