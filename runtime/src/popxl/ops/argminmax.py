"""Places of extrema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis, reduced_shape
from popxl.ops.utils import _create_op, check_in_graph, handle_negative_axis
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    shape = specs[0].shape
    axis = checked_axis(attrs["axis"], len(shape), "dim")
    return [Spec(reduced_shape(shape, [axis], attrs["keepdims"]), "int32")]


for _kind in ("ArgMax", "ArgMin"):
    define(OpDef(_kind, _infer, flops=lambda ins, outs, attrs: ins[0].nelms))


def _search(kind: str, name: str, t: Tensor, dim: Optional[int], keepdim: Optional[bool]) -> Tensor:
    check_in_graph(get_current_context().graph, t=t)
    attrs = {"axis": handle_negative_axis(t, dim or 0), "keepdims": bool(keepdim)}
    return _create_op(kind, [t], attrs, [name])[0]


@op_debug_context
def argmax(t: Tensor, dim: Optional[int] = 0, keepdim: Optional[bool] = False) -> Tensor:
    """Index of the greatest element along ``dim`` as int32; of equal ones the first.

    Args:
        t: any shape but a scalar.
        dim: axis, negative ones count from the end.
        keepdim: keep the axis with length 1.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: there is no such axis.
    """
    return _search("ArgMax", "argmax_out", t, dim, keepdim)


@op_debug_context
def argmin(t: Tensor, dim: Optional[int] = 0, keepdim: Optional[bool] = False) -> Tensor:
    """Index of the least element along ``dim``; see :func:`argmax`."""
    return _search("ArgMin", "argmin_out", t, dim, keepdim)
