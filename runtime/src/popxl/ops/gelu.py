"""Gaussian error linear unit, tanh form."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.tensor import Tensor

define_elementwise("Gelu", inplace="GeluInplace")


@op_debug_context
def gelu(t: Tensor) -> Tensor:
    """Gaussian error linear unit in its tanh approximation:
    0.5 t (1 + tanh(sqrt(2/pi) (t + 0.044715 t^3))).

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Gelu", t, "gelu_out")


@op_debug_context
def gelu_(t: Tensor) -> Tensor:
    """As :func:`gelu`, but in place; returns an alias of ``t``."""
    return unary("GeluInplace", t, "gelu_inplace_out")


define_elementwise("GeluGrad", like_last)


@gradient("Gelu")
def _gradients(site: GradSite) -> Grads:
    return [lambda: gradient_op("GeluGrad", site.grad(), site.input())]
