"""Rectified linear unit."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, select
from popxl.ops.greater import greater
from popxl.tensor import Tensor, constant

define_elementwise("Relu", inplace="ReluInplace")


@op_debug_context
def relu(t: Tensor) -> Tensor:
    """max(t, 0) of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Relu", t, "relu_out")


@op_debug_context
def relu_(t: Tensor) -> Tensor:
    """As :func:`relu`, but in place; returns an alias of ``t``."""
    return unary("ReluInplace", t, "relu_inplace_out")


@gradient("Relu")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        y = site.output()
        return select(greater(y, constant(0, y.dtype, "zero")), site.grad())

    return [grad]
