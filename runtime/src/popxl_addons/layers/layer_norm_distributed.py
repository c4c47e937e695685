"""Layer normalisation of an axis that is cut over replicas."""

from __future__ import annotations

import popxl
from popxl import ReplicaGrouping
from popxl_addons._initialisers import Full
from popxl_addons.module import Module
from popxl_addons.ops.layer_norm_distributed import layer_norm_distributed


class LayerNormDistributed(Module):
    """Layer normalisation of (rows, features / group size).

    Args:
        replica_grouping: replicas that the features are cut over; required.
    """

    def __init__(self, replica_grouping: ReplicaGrouping | None = None) -> None:
        super().__init__()
        self.replica_grouping = replica_grouping

    def build(self, x: popxl.Tensor, eps: float = 1e-5) -> popxl.Tensor:
        """Apply the layer; every replica of a group has its own slice of the variables."""
        if self.replica_grouping is None:
            raise ValueError("LayerNormDistributed: a replica_grouping is needed")
        shape, group = (x.shape[-1],), self.replica_grouping.transpose()
        weight = self.add_variable_input(
            "weight", Full(shape, 1.0), x.dtype, replica_grouping=group
        )
        bias = self.add_variable_input("bias", Full(shape, 0.0), x.dtype, replica_grouping=group)
        return layer_norm_distributed(x, weight, bias, eps, self.replica_grouping)
