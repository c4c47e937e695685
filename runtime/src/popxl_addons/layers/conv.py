"""Convolution over two axes."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping, ops
from popxl.utils import to_numpy
from popxl_addons._initialisers import Full, TruncatedNormal
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict


class Conv2D(Module):
    """Two-dimensional convolution of (batch, channels, height, width).

    Args:
        out_channels: channels of the result.
        kernel_size: (height, width), or one number for both.
        strides: (height, width).
        paddings: before each axis, then after each axis; or "same_upper", "same_lower", "valid".
        dilations: (height, width).
        groups: groups of channels.
        bias: whether there is a bias.
        available_memory_proportions: no effect on results.
        partials_types: no effect on results.
        enable_conv_dithering: no effect on results.
        replica_grouping: of the variables.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: tuple[int, ...] | int,
        strides: tuple[int, ...] = (1, 1),
        paddings: str | tuple[int, ...] = (0, 0, 0, 0),
        dilations: tuple[int, ...] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        available_memory_proportions: list[float] | None = None,
        partials_types: list[str] | None = None,
        enable_conv_dithering: list[int] | None = None,
        replica_grouping: ReplicaGrouping | None = None,
    ) -> None:
        super().__init__()
        square = not isinstance(kernel_size, tuple)
        self.kernel_size: Any = (kernel_size, kernel_size) if square else kernel_size
        self.out_channels = out_channels
        self.strides = strides
        self.dilations = dilations
        self.groups = groups
        self.bias: bool | popxl.Tensor = bias
        self._has_bias = bias
        self.available_memory_proportions = available_memory_proportions
        self.partial_types = partials_types
        self.enable_conv_dithering = enable_conv_dithering
        self.replica_grouping = replica_grouping
        by_name = isinstance(paddings, str)
        self.pad_type: Any = paddings if by_name else "not_set"
        self.paddings: Any = (0, 0, 0, 0) if by_name else paddings

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer to `x` of shape (batch, channels, height, width)."""
        assert x.rank == 4, f"Conv2D: x is (batch, channels, height, width), got {x.shape}"
        shape = (self.out_channels, x.shape[1] // self.groups, *self.kernel_size)
        group = self.replica_grouping
        self.weight = self.add_variable_input(
            "weight", TruncatedNormal(shape), x.dtype, replica_grouping=group
        )
        y = ops.conv(
            x,
            self.weight,
            stride=self.strides,
            padding=self.paddings,
            dilation=self.dilations,
            groups=self.groups,
            pad_type=self.pad_type,
            available_memory_proportions=self.available_memory_proportions,
            partials_types=self.partial_types,
            enable_conv_dithering=self.enable_conv_dithering,
        )
        if self._has_bias:
            zeros = Full((1, self.out_channels, 1, 1), 0.0)
            # Programs read the tensor here after build, so it takes the
            # place of the flag (quirk).
            self.bias = self.add_variable_input("bias", zeros, x.dtype, replica_grouping=group)
            y = y + self.bias
        return y

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.Conv2d`."""
        weights = {variables.weight: to_numpy(nn_layer.weight.data, dtype)}
        if "bias" in variables:
            bias = variables.bias
            weights[bias] = to_numpy(nn_layer.bias.data.reshape(bias.shape), dtype)
        return WeightsDict(weights)
