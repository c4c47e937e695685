"""Sum."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, to_shape, unreduced
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define

define_reduction("ReduceSum")


@op_debug_context
def sum(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Sum of elements, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceSum", t, axis, keepdims, "sum_out")


define(OpDef("Unreduce", to_shape, moves_data=True))


@gradient("ReduceSum")
def _gradients(site: GradSite) -> Grads:
    return [lambda: unreduced(site, site.grad())]
