"""Reductions over replicas."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.collectives.collectives import CollectiveOps, _groups, _name, to_collective_op
from popxl.ops.utils import _create_op, check_in_graph
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("ReplicatedAllReduce", same))
define(OpDef("ReplicatedAllReduceInplace", same, pure="ReplicatedAllReduce", writes=0))


def _reduce(kind: str, t: Tensor, op: CollectiveOps, group: ReplicaGrouping | None) -> Tensor:
    check_in_graph(get_current_context().graph, t=t)
    attrs = {"op": to_collective_op(op), "groups": _groups(group)}
    return _create_op(kind, [t], attrs, [_name(t, "_all_reduce")])[0]


@op_debug_context
def replicated_all_reduce(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """The reduction of ``t`` over each group of replicas, on every member.

    Args:
        t: any shape.
        op: add, mean, min, max, and, or, square_add; ("mul" computes the mean, as ever).
        group: which replicas communicate; default all.

    Raises:
        ValueError: an unknown op.
        NotImplementedError: a grouping without a common stride.
    """
    return _reduce("ReplicatedAllReduce", t, op, group)


@op_debug_context
def replicated_all_reduce_(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """As :func:`replicated_all_reduce`, in place; returns an alias of ``t``."""
    return _reduce("ReplicatedAllReduceInplace", t, op, group)
