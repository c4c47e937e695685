"""Maxima: over axes, and of several tensors."""

from __future__ import annotations

import functools
from typing import Iterable, Optional, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import define_elementwise, define_reduction, reduction
from popxl.ops.equal import equal
from popxl.ops.gradients import Grads, GradSite, gradient, select, unreduced
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor

define_reduction("ReduceMax")
define_elementwise("Max")


@op_debug_context
def max(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Greatest element, over all or some axes.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceMax", t, axis, keepdims, "max_out")


@op_debug_context
def maximum(*ts: Tensor) -> Tensor:
    """Greatest of the tensors, element by element, with NumPy's broadcasting.

    Args:
        ts: one or more tensors of equal dtype.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: no argument, or one is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    if not ts:
        raise ValueError("maximum needs at least one tensor.")
    check_in_graph(get_current_context().graph, *ts)
    check_tensor_ipu_and_tile_set(*ts)
    return _create_op("Max", list(ts), names=["maximum_out"])[0]


@gradient("Max")
def _gradients_0(site: GradSite) -> Grads:
    def chosen(index: int) -> Tensor:
        return select(equal(site.input(index), site.output()), site.grad())

    return [functools.partial(chosen, index) for index in range(len(site.op.inputs))]


@gradient("ReduceMax")
def _gradients_1(site: GradSite) -> Grads:
    def grad() -> Tensor:
        chosen = equal(site.input(), unreduced(site, site.output()))
        return select(chosen, unreduced(site, site.grad()))

    return [grad]
