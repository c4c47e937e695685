"""Fully connected layer with float8 arithmetic."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping
from popxl_addons.layers.linear import Linear
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict


class LinearFP8(Module):
    """`Linear` that multiplies float8 values. Not implemented yet."""

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        scale_metric: str = "amax",
        scale: int = 0,
        replica_grouping: ReplicaGrouping | None = None,
    ) -> None:
        raise NotImplementedError("popxl_addons.layers.linear_fp8.LinearFP8 is not implemented yet")

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer. Not implemented yet."""
        raise NotImplementedError("LinearFP8.build is not implemented yet")

    def build_grad(self, dLdy: popxl.Tensor) -> popxl.Tensor:
        """Gradient. Not implemented yet."""
        raise NotImplementedError("LinearFP8.build_grad is not implemented yet")

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.Linear`."""
        return Linear.torch_mapping(variables, nn_layer, dtype)
