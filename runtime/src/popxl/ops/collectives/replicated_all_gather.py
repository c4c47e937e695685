"""Gathers over replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from popxl.context import get_current_context, op_debug_context
from popxl.ops.collectives.collectives import _groups, _name
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.reshape import reshape
from popxl.ops.utils import _create_op, check_in_graph
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

_SHAPES = ("new_axis", "concat", "meta_shape", "auto")


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    size, axis = len(attrs["groups"][0]), attrs["axis"]
    if attrs["mode"] == "new_axis":
        return [Spec((size, *spec.shape), spec.dtype)]
    if attrs["mode"] == "meta_shape":
        return [Spec(spec.meta_shape or (size * spec.nelms,), spec.dtype)]
    shape = list(spec.shape)
    shape[axis] *= size
    return [Spec(tuple(shape), spec.dtype)]


define(OpDef("ReplicatedAllGather", _infer, moves_data=True))


@op_debug_context
def replicated_all_gather(
    t: Tensor,
    axis: int = 0,
    group: ReplicaGrouping | None = None,
    output_shape: Literal["new_axis", "concat", "meta_shape", "auto"] = "auto",
) -> Tensor:
    """The members' tensors together, on every member of each group.

    Args:
        t: any shape but a scalar's.
        axis: where to concatenate. [defect] Negative axes once moved data as axis 0 does; they
            count from the end.
        group: which replicas communicate; default all.
        output_shape: ``concat`` along ``axis``; ``new_axis``: (group size, \\*shape);
            ``meta_shape``: the unsharded tensor; ``auto``: meta shape if ``t`` is a shard,
            else concat.

    Raises:
        ValueError: axis not an int, or an unknown output shape.
        IndexError: a scalar, or an axis out of range.
    """
    check_in_graph(get_current_context().graph, t=t)
    if not isinstance(axis, int):
        raise ValueError(f"Axis should be an int, not {axis!r}.")
    if output_shape not in _SHAPES:
        raise ValueError(f"output_shape must equal one of {_SHAPES}, not {output_shape!r}.")
    if t.rank == 0 or not -t.rank <= axis < t.rank:
        raise IndexError(f"replicated_all_gather: {t} has no axis {axis}.")
    mode: str = output_shape
    if mode == "auto":
        mode = "meta_shape" if t.meta_shape else "concat"
    attrs = {"groups": _groups(group), "axis": axis % t.rank, "mode": mode}
    return _create_op("ReplicatedAllGather", [t], attrs, [_name(t, "_all_gathered")])[0]


@gradient("ReplicatedAllGather")
def _gradients(site: GradSite) -> Grads:
    attrs = site.attrs
    if attrs["mode"] == "meta_shape":
        raise site.refusal("a gather to the meta shape has no gradient")

    def grad() -> Tensor:
        # (quirk) The replica's own part of its own gradient: nothing is summed over replicas.
        cut = {
            "groups": attrs["groups"],
            "axis": 0 if attrs["mode"] == "new_axis" else attrs["axis"],
        }
        part = _create_op("ReplicatedSlice", [site.grad()], cut, ["gathered_grad"])[0]
        return reshape(part, site.in_spec().shape)

    return [grad]
