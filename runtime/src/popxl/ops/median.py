"""Median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Iterable, Optional, Union

from popxl.context import op_debug_context
from popxl.ops._families import infer_reduction, reduction
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (values,) = infer_reduction(specs, attrs)
    return [values, Spec(values.shape, "int32")]


define(OpDef("ReduceMedian", _infer, flops=lambda ins, outs, attrs: ins[0].nelms))


@op_debug_context
def median(
    t: Tensor, axis: Optional[Union[int, Iterable[int]]] = None, keepdims: bool = False
) -> Tensor:
    """Median, over all or some axes; of an even number of elements the lower of the middle two.

    Args:
        t: any shape.
        axis: axis or axes, negative ones count from the end; None for all, () for none.
        keepdims: keep reduced axes with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    return reduction("ReduceMedian", t, axis, keepdims, "median_out", "median_indices_out")


define(OpDef("ReduceMedianGrad", to_shape))


@gradient("ReduceMedian")
def _gradients(site: GradSite) -> Grads:
    axes, shape = site.attrs["axes"], site.in_spec().shape
    return [
        lambda: gradient_op(
            "ReduceMedianGrad", site.grad(), site.output(1), axes=axes, shape=shape
        ),
    ]
