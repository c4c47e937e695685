"""Rounding up."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, zeros
from popxl.tensor import Tensor

define_elementwise("Ceil")


@op_debug_context
def ceil(t: Tensor) -> Tensor:
    """Each element rounded up to an integer.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Ceil", t, "ceil_out")


@gradient("Ceil")
def _gradients(site: GradSite) -> Grads:
    return [lambda: zeros(site.in_spec())]
