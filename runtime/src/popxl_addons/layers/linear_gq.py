"""Fully connected layer with 4-bit group-quantised weights."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping
from popxl.utils import to_numpy
from popxl_addons._initialisers import Full
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress,
)
from popxl_addons.utils import WeightsDict

__all__ = ["LinearGQ", "group_quantize_compress_numpy", "group_quantize_decompress"]


class LinearGQ(Module):
    """`Linear` whose weights are 4-bit codes with a scale and a bias for each group.

    Args:
        out_features: size of the last axis of the result.
        bias: whether there is a bias.
        replica_grouping: of the variables.
        group_size: values that share a scale, a multiple of 4; required.
        dim: axis of the (in, out) weight along which groups lie: -1 or 1, or 0.
    """

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        replica_grouping: ReplicaGrouping | None = None,
        group_size: int = 0,
        dim: int = -1,
    ) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = bias
        self.replica_grouping = replica_grouping
        self.group_size = group_size
        self.dim = dim

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer to (..., in_features)."""
        sizes = {-1: (x.shape[-1], self.out_features), 0: (self.out_features, x.shape[-1])}
        rows, columns = sizes[-1 if self.dim == 1 else self.dim]
        groups = columns // self.group_size
        group = self.replica_grouping
        codes = Full((rows, groups, self.group_size // 4), 0)
        packed = self.add_variable_input(
            "weight_compressed", codes, popxl.uint16, replica_grouping=group
        )
        scale, offset = (
            self.add_variable_input(
                f"weight_decompression_{name}",
                Full((rows, groups, 1), 0.0),
                x.dtype,
                replica_grouping=group,
            )
            for name in ("scale", "bias")
        )
        y = x @ group_quantize_decompress(packed, scale, offset, self.dim)
        if self.bias:
            zeros = Full((y.shape[-1],), 0.0)
            y = y + self.add_variable_input("bias", zeros, x.dtype, replica_grouping=group)
        return y

    @staticmethod
    def torch_mapping(
        variables: NamedTensors,
        nn_layer: Any,
        dtype: popxl.dtype = popxl.float32,
        group_size: int = 64,
        dim: int = -1,
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.Linear`, quantised."""
        weight = to_numpy(nn_layer.weight.data.T)
        packed, scale, bias = group_quantize_compress_numpy(weight, group_size, dim)
        weights = {
            variables.weight_compressed: packed,
            variables.weight_decompression_scale: scale,
            variables.weight_decompression_bias: bias,
        }
        if "bias" in variables:
            weights[variables.bias] = to_numpy(nn_layer.bias.data, dtype)
        return WeightsDict(weights)
