"""Tensor parallelism in graphs: which replicas share a weight, and where their results meet.

A sharded section starts with :func:`enter_sharded` and ends with :func:`leave_sharded`. Between the
two, every replica holds its own columns (then rows) of the section's weights, so what it computes
differs from its neighbours'; outside, activations are equal on all replicas.
"""

from __future__ import annotations

import popxl
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)


def shard_grouping(r: int) -> popxl.ReplicaGrouping | None:
    """Grouping of a weight of which each of r neighbouring replicas holds its own shard.

    Args:
        r: The tensor-parallel degree.

    Returns:
        The grouping for variables of the current Ir. Its transpose is the group that communicates.
        None when nothing is cut: such a variable is one value for all replicas.
    """
    if r == 1:
        return None
    ir = popxl.gcg().ir
    return ir.replica_grouping(stride=r, group_size=ir.replication_factor // r)


def enter_sharded(x: popxl.Tensor, r: int) -> popxl.Tensor:
    """Marks where activations that are equal on all replicas enter a sharded section."""
    grouping = shard_grouping(r)
    if grouping is None:
        return x
    return replicated_all_reduce_identical_inputs(x, group=grouping.transpose())


def leave_sharded(x: popxl.Tensor, r: int) -> popxl.Tensor:
    """Sums the partial results of the r replicas: the result is equal on all of them."""
    grouping = shard_grouping(r)
    if grouping is None:
        return x
    return replicated_all_reduce_identical_grad_inputs(x, group=grouping.transpose())
