"""Product."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define

define_reduction("ReduceProd")


@op_debug_context
def prod(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Product of elements, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceProd", t, axis, keepdims, "prod_out")


define(OpDef("ReduceProdGrad", like_last))


@gradient("ReduceProd")
def _gradients(site: GradSite) -> Grads:
    return [lambda: gradient_op("ReduceProdGrad", site.grad(), site.input(), **site.attrs)]
