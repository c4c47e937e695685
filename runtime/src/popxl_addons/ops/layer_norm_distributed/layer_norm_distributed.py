"""Layer normalisation of an axis that is cut over replicas."""

from __future__ import annotations

import popxl
from popxl import ReplicaGrouping, ops
from popxl_addons.ops.replicated_all_reduce_TP import replicated_all_reduce

__all__ = ["layer_norm_distributed"]


def layer_norm_distributed(
    t: popxl.Tensor,
    w: popxl.Tensor,
    b: popxl.Tensor,
    epsilon: float = 1e-5,
    group: ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """Normalise the rows of a matrix of which each replica has some columns.

    Args:
        t: (rows, features / group size).
        w: (features / group size,), the scale of this replica's columns.
        b: the same for the shift.
        epsilon: added to the variance.
        group: replicas that share the features (default all).

    Returns:
        As `t`; computed in float32.
    """
    assert t.rank == 2, f"layer_norm_distributed: t is (rows, features), got {t.shape}"
    assert w.rank == 1, f"layer_norm_distributed: w is (features,), got {w.shape}"
    assert b.rank == 1, f"layer_norm_distributed: b is (features,), got {b.shape}"
    group = popxl.gcg().ir.replica_grouping() if group is None else group
    features = t.shape[1] * group.group_size
    x, scale, shift = (ops.cast(value, popxl.float32) for value in (t, w, b))

    def mean(values: popxl.Tensor) -> popxl.Tensor:
        total = ops.sum(values, axis=1, keepdims=True)
        return replicated_all_reduce(total, group=group) / float(features)

    centred = x - mean(x)
    normal = centred / ops.sqrt(mean(centred * centred) + epsilon)
    return ops.cast(normal * scale + shift, t.dtype)
