"""All-gather over groups given by stride and size."""

from __future__ import annotations

from popxl import ReplicaGrouping, Tensor, ops

__all__ = ["replicated_all_gather_strided"]


def replicated_all_gather_strided(t: Tensor, group: ReplicaGrouping | None = None) -> Tensor:
    """The members' elements in the order of their ranks, flattened.

    A tensor with a meta shape is a shard, and the result has that shape.
    """
    if t.meta_shape:
        return ops.collectives.replicated_all_gather(t, group=group)
    return ops.collectives.replicated_all_gather(t.flatten(), group=group, output_shape="concat")
