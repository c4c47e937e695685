"""L2 norm."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, select, unreduced
from popxl.ops.greater import greater
from popxl.tensor import Tensor, constant

define_reduction("ReduceL2")


@op_debug_context
def l2(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Square root of the sum of squares, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceL2", t, axis, keepdims, "l2_out")


@gradient("ReduceL2")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        norm = site.output()
        # A norm of 0 has gradient 0, not 0 / 0.
        share = select(greater(norm, constant(0, norm.dtype, "zero")), site.grad() / norm)
        return site.input() * unreduced(site, share)

    return [grad]
