"""Negation."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Neg")


@op_debug_context
def negate(t: Tensor) -> Tensor:
    """Each element with the other sign.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Neg", t, "negate_out")


@gradient("Neg")
def _gradients(site: GradSite) -> Grads:
    return [lambda: -site.grad()]
