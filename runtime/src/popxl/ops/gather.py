"""Rows of a tensor by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, indices = specs
    axis, groups = attrs["axis"], attrs["group_size"]
    if not 0 <= axis < len(t.shape):
        raise popart_exception(f"gather: axis {axis} is out of range for {t}")
    if "int" not in indices.dtype:
        raise popart_exception(f"gather: indices must be integers, not {indices}")
    if groups == 1:
        return [Spec((*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :]), t.dtype)]
    if axis == 0:
        raise popart_exception("groupedgather: axis 0 is the axis of the groups")
    if t.shape[0] != groups or indices.shape[:1] != (groups,):
        raise popart_exception(
            f"groupedgather: expected {groups} groups on axis 0 of both, got {t} and {indices}"
        )
    return [Spec((*t.shape[:axis], *indices.shape[1:], *t.shape[axis + 1 :]), t.dtype)]


define(OpDef("Gather", _infer, moves_data=True))
define(OpDef("PopartTiedGather", _infer, moves_data=True))


def _gather(
    kind: str, t: Tensor, indices: Tensor, axis: int, groups: int, zero_oor: bool, name: str
) -> Tensor:
    check_in_graph(get_current_context().graph, t=t, indices=indices)
    check_tensor_ipu_and_tile_set(t=t, indices=indices)
    axis = axis + t.rank if axis < 0 else axis
    attrs = {"axis": int(axis), "zero_oor": bool(zero_oor), "group_size": int(groups)}
    return _create_op(kind, [t, indices], attrs, [name])[0]


@op_debug_context
def groupedgather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    group_size: Optional[int] = 1,
    available_memory_proportion: Optional[float] = None,
    zero_OOR: bool = False,
) -> Tensor:
    """:func:`gather` within each of ``group_size`` groups.

    Args:
        t: (groups, ...).
        indices: (groups, ...), integers.
        axis: counted with the axis of the groups; not that axis.
        group_size: number of groups.
        available_memory_proportion: a hint for IPUs; ignored.
        zero_OOR: zeros for indices out of range.

    Raises:
        popart_exception: axis out of range or 0, or an input without the axis of groups.
    """
    return _gather("Gather", t, indices, axis, group_size or 1, zero_OOR, "gather_out")


@op_debug_context
def gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: Optional[float] = None,
    zero_OOR: bool = False,
) -> Tensor:
    """Elements of ``t`` along ``axis`` at ``indices``.

    Args:
        t: any shape but ().
        indices: integers of any shape. They do not wrap: negative ones are out of range.
        axis: axis of ``t``.
        available_memory_proportion: a hint for IPUs; ignored.
        zero_OOR: zeros for indices out of range, which have no defined result otherwise.

    Returns:
        ``t.shape[:axis] + indices.shape + t.shape[axis + 1:]``.

    Raises:
        popart_exception: axis out of range, or indices that are no integers.
    """
    return _gather("Gather", t, indices, axis, 1, zero_OOR, "gather_out")


@op_debug_context
def tied_gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: Optional[float] = None,
    zero_OOR: bool = False,
) -> Tensor:
    """:func:`gather` of a table that a matrix product uses as well."""
    return _gather("PopartTiedGather", t, indices, axis, 1, zero_OOR, "tiedgather_out")


define(OpDef("GatherGrad", to_shape))


@gradient("Gather", "PopartTiedGather")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        kept = {key: site.attrs[key] for key in ("axis", "group_size")}
        shape = site.in_spec().shape
        return gradient_op("GatherGrad", site.grad(), site.input(1), **kept, shape=shape)

    return [grad, None]
