"""Group normalisation."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping, ops
from popxl.utils import to_numpy
from popxl_addons._initialisers import Full
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict


class GroupNorm(Module):
    """Normalises groups of channels, then scales and shifts each channel.

    Args:
        num_groups: groups of channels.
        replica_grouping: of the variables.
        eps: added to the variance.
        cache: see `Module`.
    """

    def __init__(
        self,
        num_groups: int,
        replica_grouping: ReplicaGrouping | None = None,
        eps: float = 1e-5,
        cache: bool = False,
    ) -> None:
        super().__init__(cache=cache)
        self.num_groups = num_groups
        self.replica_grouping = replica_grouping
        self.eps = eps

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer to `x` of shape (batch, channels, ...)."""
        shape, group = (x.shape[1],), self.replica_grouping
        weight = self.add_variable_input(
            "weight", Full(shape, 1.0), x.dtype, replica_grouping=group
        )
        bias = self.add_variable_input("bias", Full(shape, 0.0), x.dtype, replica_grouping=group)
        return ops.group_norm(x, weight, bias, num_groups=self.num_groups, eps=self.eps)

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.GroupNorm`."""
        return WeightsDict(
            {
                variables.weight: to_numpy(nn_layer.weight.data, dtype),
                variables.bias: to_numpy(nn_layer.bias.data, dtype),
            }
        )
