"""Layer normalisation of an axis that is cut over replicas."""

from __future__ import annotations

import popxl
from popxl import ReplicaGrouping

__all__ = ["layer_norm_distributed"]


def layer_norm_distributed(
    t: popxl.Tensor,
    w: popxl.Tensor,
    b: popxl.Tensor,
    epsilon: float = 1e-5,
    group: ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """Layer normalisation over an axis cut over a group of replicas. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.layer_norm_distributed is not implemented yet")
