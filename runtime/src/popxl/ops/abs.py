"""Absolute value."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.sign import sign
from popxl.tensor import Tensor

define_elementwise("Abs")


@op_debug_context
def abs(t: Tensor) -> Tensor:
    """Absolute values.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Abs", t, "abs_out")


@gradient("Abs")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * sign(site.input())]
