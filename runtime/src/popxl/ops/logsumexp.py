"""Logarithm of a sum of exponentials."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import define_reduction, reduction
from popxl.ops.exp import exp
from popxl.ops.gradients import Grads, GradSite, gradient, unreduced
from popxl.tensor import Tensor

define_reduction("ReduceLogSumExp")


@op_debug_context
def logsumexp(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Logarithm of the sum of exponentials over all or some axes, without overflow.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceLogSumExp", t, axis, keepdims, "logsumexp_out")


@gradient("ReduceLogSumExp")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        shares = exp(site.input() - unreduced(site, site.output()))
        return shares * unreduced(site, site.grad())

    return [grad]
