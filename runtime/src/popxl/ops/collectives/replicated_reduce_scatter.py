"""Each replica's piece of a reduction over replicas, or of its own tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.collectives.collectives import CollectiveOps, _groups, _name, to_collective_op
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.reshape import reshape
from popxl.ops.slice import slice
from popxl.ops.utils import _create_op, check_in_graph
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer_flat(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    length = -(-spec.nelms // len(attrs["groups"][0]))
    return [Spec((length,), spec.dtype, spec.shape if attrs["sharded"] else ())]


def _infer_slice(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    shape = list(spec.shape)
    shape[attrs["axis"]] //= len(attrs["groups"][0])
    if shape[attrs["axis"]] == 1:  # (quirk) an axis of length 1 is dropped
        del shape[attrs["axis"]]
    return [Spec(tuple(shape), spec.dtype)]


define(OpDef("ReplicatedReduceScatter", _infer_flat))
define(OpDef("ReplicatedSlice", _infer_slice, moves_data=True))


@op_debug_context
def replicated_reduce_scatter(
    t: Tensor,
    op: CollectiveOps = "add",
    group: ReplicaGrouping | None = None,
    configure_output_for_replicated_tensor_sharding: bool = False,
) -> Tensor:
    """Piece k of the flattened, zero-padded reduction on the k-th member of each group.

    Args:
        t: any shape.
        op: see :func:`replicated_all_reduce`.
        group: which replicas communicate; default all.
        configure_output_for_replicated_tensor_sharding: give the result ``t``'s shape as its
            meta shape.

    Returns:
        A tensor of shape (ceil(elements / group size),).
    """
    check_in_graph(get_current_context().graph, t=t)
    attrs = {
        "op": to_collective_op(op),
        "groups": _groups(group),
        "sharded": configure_output_for_replicated_tensor_sharding,
    }
    return _create_op("ReplicatedReduceScatter", [t], attrs, [_name(t, "_reduce_scattered")])[0]


@op_debug_context
def replica_sharded_slice(t: Tensor, group: ReplicaGrouping | None = None) -> Tensor:
    """Piece k of the own flattened, zero-padded tensor on the k-th member of each group.

    Args:
        t: any shape.
        group: which replicas form a group; default all.

    Returns:
        A tensor of shape (ceil(elements / group size),), whose meta shape is ``t``'s shape.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or the groups do not tile the replicas.
        NotImplementedError: an irregular grouping.
    """
    check_in_graph(get_current_context().graph, t=t)
    attrs = {"op": "local", "groups": _groups(group), "sharded": True}
    return _create_op("ReplicatedReduceScatter", [t], attrs, [_name(t, "_sharded_slice")])[0]


@op_debug_context
def replicated_slice(t: Tensor, axis: int = 0, group: ReplicaGrouping | None = None) -> Tensor:
    """Part k of ``t`` along ``axis`` on the k-th member of each group.

    (quirk) An axis of which each part has length 1 is dropped. [defect] Negative axes were once cut
    along axis 0; they count from the end.

    Args:
        t: any shape of at least one axis.
        axis: which axis is cut.
        group: which replicas form a group; default all.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or the groups do not tile the replicas,
            or the group size does not divide the axis.
        NotImplementedError: an irregular grouping.
    """
    check_in_graph(get_current_context().graph, t=t)
    groups = _groups(group)
    axis = axis % t.rank
    if t.shape[axis] % len(groups[0]):
        raise ValueError(
            f"Replicated slice must equally divide axis {axis} of {t} by {len(groups[0])}."
        )
    return _create_op(
        "ReplicatedSlice", [t], {"groups": groups, "axis": axis}, [_name(t, "_replicated_slice")]
    )[0]


def _gathered(t: Tensor, groups: tuple[tuple[int, ...], ...], axis: int) -> Tensor:
    attrs = {"groups": groups, "axis": axis, "mode": "concat"}
    return _create_op("ReplicatedAllGather", [t], attrs, ["sliced_grad"])[0]


@gradient("ReplicatedSlice")
def _gradients_0(site: GradSite) -> Grads:
    def grad() -> Tensor:
        groups, axis = site.attrs["groups"], site.attrs["axis"]
        shape = list(site.in_spec().shape)
        shape[axis] //= len(groups[0])
        return _gathered(reshape(site.grad(), tuple(shape)), groups, axis)

    return [grad]


@gradient("ReplicatedReduceScatter")
def _gradients_1(site: GradSite) -> Grads:
    if site.attrs["op"] != "local":
        raise site.refusal("replicated_reduce_scatter has no gradient")

    def grad() -> Tensor:
        spec = site.in_spec()
        flat = _gathered(site.grad(), site.attrs["groups"], 0)
        return reshape(slice(flat, 0, spec.nelms), spec.shape)

    return [grad]
