"""Reduce-scatter over groups given by stride and size."""

from __future__ import annotations

from popart import popart_exception
from popxl import ReplicaGrouping, Tensor, ops
from popxl.ops.collectives.collectives import CollectiveOps

__all__ = ["replicated_reduce_scatter_strided"]


def replicated_reduce_scatter_strided(
    t: Tensor,
    op: CollectiveOps = "add",
    group: ReplicaGrouping | None = None,
    configure_output_for_replicated_tensor_sharding: bool = False,
) -> Tensor:
    """Reduce over a group and keep this member's piece, 1-D, padded with zeros at the end.

    Args:
        op: "add" or "mean".
        group: default all replicas.
        configure_output_for_replicated_tensor_sharding: mark the result as a shard of `t`.

    Raises:
        popart_exception: another op.
    """
    if op not in ("add", "mean"):
        raise popart_exception(f"A strided reduce-scatter is 'add' or 'mean', not {op!r}")
    return ops.collectives.replicated_reduce_scatter(
        t, op, group, configure_output_for_replicated_tensor_sharding
    )
