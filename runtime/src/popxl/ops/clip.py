"""Limits of values."""

from __future__ import annotations

import builtins

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.equal import equal
from popxl.ops.gradients import Grads, GradSite, gradient, select
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

_FLOAT16_MAX = 65504.0

define_elementwise("Clip")


@op_debug_context
def clip(t: Tensor, min: float = float("-inf"), max: float = float("inf")) -> Tensor:
    """Each element, or the bound that it exceeds; NaN stays NaN.

    Args:
        t: any shape.
        min: lower bound.
        max: upper bound. Bounds of float16 tensors are limited to its range.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    bounds = [float(min), float(max)]
    if t.dtype is dtypes.float16:
        bounds = [builtins.max(-_FLOAT16_MAX, builtins.min(_FLOAT16_MAX, b)) for b in bounds]
    return unary("Clip", t, "clip_out", {"min": bounds[0], "max": bounds[1]})


clamp = clip


@gradient("Clip")
def _gradients(site: GradSite) -> Grads:
    return [lambda: select(equal(site.input(), site.output()), site.grad())]
