"""Fully connected layer."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping
from popxl.utils import to_numpy
from popxl_addons._initialisers import Full, TruncatedNormal
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict


class Linear(Module):
    """y = x @ weight + bias.

    Args:
        out_features: size of the last axis of y.
        bias: whether there is a bias.
        replica_grouping: of the variables.
    """

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        replica_grouping: ReplicaGrouping | None = None,
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = bias
        self.replica_grouping = replica_grouping

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features). The weight is (in_features, out_features), transposed with
                respect to torch.
        """
        shape = (x.shape[-1], self.out_features)
        group = self.replica_grouping
        weight = self.add_variable_input(
            "weight", TruncatedNormal(shape), x.dtype, replica_grouping=group
        )
        y = x @ weight
        if self.bias:
            zeros = Full((y.shape[-1],), 0.0)
            y = y + self.add_variable_input("bias", zeros, x.dtype, replica_grouping=group)
        return y

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.Linear`."""
        weights = {variables.weight: to_numpy(nn_layer.weight.data.T, dtype)}
        if "bias" in variables:
            weights[variables.bias] = to_numpy(nn_layer.bias.data, dtype)
        return WeightsDict(weights)
