"""Swish."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.tensor import Tensor

define_elementwise("Swish", inplace="SwishInplace")


@op_debug_context
def swish(t: Tensor) -> Tensor:
    """t sigmoid(t) of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Swish", t, "swish_out")


@op_debug_context
def swish_(t: Tensor) -> Tensor:
    """As :func:`swish`, but in place; returns an alias of ``t``."""
    return unary("SwishInplace", t, "swish_inplace_out")


define_elementwise("SwishGrad", like_last)


@gradient("Swish")
def _gradients(site: GradSite) -> Grads:
    return [lambda: gradient_op("SwishGrad", site.grad(), site.input())]
