"""Running sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.slice import slice
from popxl.ops.utils import _create_op, check_in_graph, handle_negative_axis
from popxl.tensor import Tensor, constant
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    checked_axis(attrs["axis"], len(specs[0].shape), "dim")
    return [Spec(specs[0].shape, specs[0].dtype)]


define(OpDef("CumSum", _infer, flops=lambda ins, outs, attrs: outs[0].nelms))


@op_debug_context
def cumsum(t: Tensor, dim: Optional[int] = 0) -> Tensor:
    """Sums of the elements up to and with each one, along ``dim``.

    Args:
        t: any shape but a scalar.
        dim: axis, negative ones count from the end.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: there is no such axis.
    """
    check_in_graph(get_current_context().graph, t=t)
    axis = handle_negative_axis(t, dim or 0)
    # PopART takes the axis as a second input; programs that list a graph's tensors see it.
    dim_tensor = constant(axis, dtypes.int64, "dim")
    return _create_op("CumSum", [t, dim_tensor], {"axis": axis}, ["cumsum_out"])[0]


@gradient("CumSum")
def _gradients(site: GradSite) -> Grads:
    axis = site.attrs["axis"]

    def grad() -> Tensor:
        backwards = cumsum(slice(site.grad(), step=-1, axis=axis), axis)
        return slice(backwards, step=-1, axis=axis)

    return [grad, None]
