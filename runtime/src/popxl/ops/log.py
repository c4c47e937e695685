"""Logarithms."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.div import div
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor, constant

define_elementwise("Log")


@op_debug_context
def log(t: Tensor) -> Tensor:
    """Natural logarithm of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Log", t, "log_out")


@op_debug_context
def log2(t: Tensor) -> Tensor:
    """Logarithm to base 2 of each element, made of two logarithms; raises as :func:`log`."""
    return div(log(t), log(constant(2, t.dtype, "log2")))


@gradient("Log")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() / site.input()]
