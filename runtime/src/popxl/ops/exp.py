"""Exponential."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor

define_elementwise("Exp", inplace="ExpInplace")


@op_debug_context
def exp(t: Tensor) -> Tensor:
    """e to the power of each element.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Exp", t, "exp_out")


@op_debug_context
def exp_(t: Tensor) -> Tensor:
    """As :func:`exp`, but in place; returns an alias of ``t``."""
    return unary("ExpInplace", t, "exp_inplace_out")


@gradient("Exp")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * site.output()]
