"""Minimum over axes."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.equal import equal
from popxl.ops.gradients import Grads, GradSite, gradient, select, unreduced
from popxl.tensor import Tensor

define_reduction("ReduceMin")


@op_debug_context
def min(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Least element, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceMin", t, axis, keepdims, "min_out")


@gradient("ReduceMin")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        chosen = equal(site.input(), unreduced(site, site.output()))
        return select(chosen, unreduced(site, site.grad()))

    return [grad]
