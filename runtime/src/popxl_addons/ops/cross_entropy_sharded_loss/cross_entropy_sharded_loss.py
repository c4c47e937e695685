"""Cross entropy of logits whose classes are cut over replicas."""

from __future__ import annotations

from typing import Literal

from popxl import ReplicaGrouping, Tensor

__all__ = ["cross_entropy_sharded_loss"]

REDUCTION_TYPE = Literal["mean", "sum", "none"]


def cross_entropy_sharded_loss(
    logits: Tensor,
    indices: Tensor,
    ignore_index: Tensor | None = None,
    replica_grouping: ReplicaGrouping | None = None,
    reduction: REDUCTION_TYPE = "mean",
    available_memory_proportion: float = 0.4,
) -> Tensor:
    """The loss, equal on all replicas of the group. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.cross_entropy_sharded_loss is not implemented yet")
