"""Gaussian error linear unit, exact form."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.tensor import Tensor

define_elementwise("GeluErf", inplace="GeluErfInplace")


@op_debug_context
def geluerf(t: Tensor) -> Tensor:
    """Gaussian error linear unit, exact: 0.5 t (1 + erf(t / sqrt(2))).

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("GeluErf", t, "geluerf_out")


@op_debug_context
def geluerf_(t: Tensor) -> Tensor:
    """As :func:`geluerf`, but in place; returns an alias of ``t``."""
    return unary("GeluErfInplace", t, "geluerf_inplace_out")


define_elementwise("GeluErfGrad", like_last)


@gradient("GeluErf")
def _gradients(site: GradSite) -> Grads:
    return [lambda: gradient_op("GeluErfGrad", site.grad(), site.input())]
