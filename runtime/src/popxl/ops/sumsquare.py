"""Sum of squares."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, unreduced
from popxl.tensor import Tensor

define_reduction("ReduceSumSquare")


@op_debug_context
def sumsquare(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Sum of squares, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceSumSquare", t, axis, keepdims, "sumsquare_out")


@gradient("ReduceSumSquare")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.input() * unreduced(site, site.grad() * 2.0)]
