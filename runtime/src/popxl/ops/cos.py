"""Cosine."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Cos")


@op_debug_context
def cos(t: Tensor) -> Tensor:
    """Cosine of each element, in radians.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Cos", t, "cos_out")


@gradient("Cos")
def _gradients(site: GradSite) -> Grads:
    from popxl.ops.sin import sin

    return [lambda: -(site.grad() * sin(site.input()))]
