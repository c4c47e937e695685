"""Reductions of the elements that fall on one index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops.equal import equal
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, select, to_shape, zeros
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

ScatterReductionType = Literal["sum", "min", "max", "none"]
reduction_dict = {"sum": "Sum", "min": "Min", "max": "Max", "none": "NoReduction"}


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    data, indices = specs[0], specs[1]
    initial = specs[2] if len(specs) > 2 else None
    axis, leading = attrs["axis"], attrs["group_size"] > 1
    if not leading <= axis < len(data.shape):
        raise popart_exception(f"scatter_reduce: axis {axis} is out of range for {data}")
    line = (*data.shape[:leading], data.shape[axis])
    if indices.shape != data.shape and not (attrs["broadcast"] and indices.shape == line):
        raise popart_exception(
            f"scatter_reduce: indices need shape {data.shape} or {line}, not {indices}"
        )
    if "int" not in indices.dtype:
        raise popart_exception(f"scatter_reduce: indices must be integers, not {indices}")
    size = initial.shape[axis] if initial is not None else attrs["axis_size"]
    result = Spec((*data.shape[:axis], size, *data.shape[axis + 1 :]), data.dtype)
    if initial is not None and (initial.shape, initial.dtype) != (result.shape, result.dtype):
        raise popart_exception(f"scatter_reduce: initial values {initial} do not fit data {data}")
    return [result]


define(OpDef("ScatterReduce", _infer))


@op_debug_context
def grouped_scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: ScatterReductionType,
    initial_values: Optional[Tensor] = None,
    axis: int = 0,
    axis_size: Optional[int] = None,
    group_size: int = 1,
    enable_index_broadcast: bool = True,
    available_memory_proportion: Optional[float] = None,
) -> Tensor:
    """:func:`scatter_reduce` within each of ``group_size`` groups along a leading axis.

    ``axis`` counts that axis as well.
    """
    if reduction not in reduction_dict:
        raise ValueError(f"The reduction must be one of {list(reduction_dict)}, not {reduction!r}.")
    if initial_values is None and axis_size is None:
        raise ValueError("Either initial_values or axis_size must be specified.")
    tensors = {"data": data, "indices": indices}
    if initial_values is not None:
        tensors["initial_values"] = initial_values
    check_in_graph(get_current_context().graph, **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    attrs = {
        "axis": axis + data.rank if axis < 0 else axis,
        "axis_size": axis_size,
        "reduction": reduction,
        "group_size": int(group_size),
        "broadcast": bool(enable_index_broadcast),
    }
    return _create_op("ScatterReduce", list(tensors.values()), attrs, ["scatterreduce_out"])[0]


def scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: ScatterReductionType,
    initial_values: Optional[Tensor] = None,
    axis: int = 0,
    axis_size: Optional[int] = None,
    enable_index_broadcast: int = True,
    available_memory_proportion: Optional[float] = None,
) -> Tensor:
    """Reduces the elements of ``data`` whose index along ``axis`` is the same.

    Args:
        data: any shape but ().
        indices: ``data``'s shape, or 1-D along ``axis`` for all other positions.
        reduction: ``sum``, ``min``, ``max``, or ``none``: one of the elements.
        initial_values: takes part in the reduction; gives the result's shape.
        axis: axis of ``data``.
        axis_size: size of that axis of the result; positions without elements are 0.
        enable_index_broadcast: allow 1-D indices.
        available_memory_proportion: a hint for IPUs; ignored.

    Raises:
        ValueError: another reduction, or neither initial values nor axis size.
        popart_exception: axis out of range, or other shapes.
    """
    return grouped_scatter_reduce(
        data,
        indices,
        reduction,
        initial_values,
        axis,
        axis_size,
        1,
        bool(enable_index_broadcast),
        available_memory_proportion,
    )


define(OpDef("ScatterReduceGrad", to_shape, moves_data=True))


@gradient("ScatterReduce")
def _gradients(site: GradSite) -> Grads:
    attrs = {key: site.attrs[key] for key in ("axis", "group_size")}
    by_choice = site.attrs["reduction"] in ("min", "max")

    def spread(t: Tensor) -> Tensor:
        return gradient_op(
            "ScatterReduceGrad", t, site.input(1), **attrs, shape=site.in_spec(0).shape
        )

    def of_data() -> Tensor:
        grad = spread(site.grad())
        return select(equal(site.input(0), spread(site.output())), grad) if by_choice else grad

    def of_initial() -> Tensor:
        if by_choice:
            return select(equal(site.input(2), site.output()), site.grad())
        if site.attrs["reduction"] == "sum":
            return site.grad()
        return grouped_scatter_reduce(
            zeros(site.in_spec(0)),
            site.input(1),
            "none",
            site.grad(),
            group_size=attrs["group_size"],
            axis=attrs["axis"],
        )

    return [of_data, None, of_initial][: len(site.op.inputs)]
