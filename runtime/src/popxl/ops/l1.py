"""L1 norm."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, unreduced
from popxl.ops.sign import sign
from popxl.tensor import Tensor

define_reduction("ReduceL1")


@op_debug_context
def l1(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Sum of absolute values, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceL1", t, axis, keepdims, "l1_out")


@gradient("ReduceL1")
def _gradients(site: GradSite) -> Grads:
    return [lambda: sign(site.input()) * unreduced(site, site.grad())]
