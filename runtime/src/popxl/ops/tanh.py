"""Hyperbolic tangent."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Tanh")


@op_debug_context
def tanh(t: Tensor) -> Tensor:
    """Hyperbolic tangent of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Tanh", t, "tanh_out")


@gradient("Tanh")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * (1.0 - site.output() * site.output())]
