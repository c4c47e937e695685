"""Sine."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.cos import cos
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Sin")


@op_debug_context
def sin(t: Tensor) -> Tensor:
    """Sine of each element, in radians.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Sin", t, "sin_out")


@gradient("Sin")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * cos(site.input())]
