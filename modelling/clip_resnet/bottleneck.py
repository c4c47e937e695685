"""The residual block of the picture encoder."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Conv2D

from modelling.clip_resnet.batch_norm import BatchNorm2D
from modelling.shards import Arrays, prefixed, take

EXPANSION = 4


class Shortcut(addons.Module):
    """The shortcut of a block that changes size: pool, 1×1 convolution, batch norm."""

    def __init__(self, channels: int, stride: int):
        """Fixes the sizes.

        Args:
            channels: Of the result.
            stride: Of the pool that makes it smaller.
        """
        super().__init__()
        self.stride = stride
        self.conv = Conv2D(channels, (1, 1), bias=False)
        self.bn = BatchNorm2D()

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """From (b, c, y, x) to (b, channels, y/stride, x/stride)."""
        return self.bn(self.conv(_pool(x, self.stride)))


class Bottleneck(addons.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut. Only pools make pictures smaller."""

    def __init__(self, in_channels: int, planes: int, stride: int = 1):
        """Fixes the sizes of one block.

        Args:
            in_channels: Channels of the input.
            planes: Channels between the convolutions; the result has four times as many.
            stride: By how much the block makes each side smaller.
        """
        super().__init__()
        self.stride = stride
        self.conv1 = Conv2D(planes, (1, 1), bias=False)
        self.bn1 = BatchNorm2D()
        self.conv2 = Conv2D(planes, (3, 3), paddings=(1, 1, 1, 1), bias=False)
        self.bn2 = BatchNorm2D()
        self.conv3 = Conv2D(planes * EXPANSION, (1, 1), bias=False)
        self.bn3 = BatchNorm2D()
        self.downsample = None
        if has_shortcut(in_channels, planes, stride):
            self.downsample = Shortcut(planes * EXPANSION, stride)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """One block.

        Args:
            x: (b, in_channels, y, x).

        Returns:
            (b, 4·planes, y/stride, x/stride).
        """
        y = ops.relu(self.bn1(self.conv1(x)))
        y = ops.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(_pool(y, self.stride)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return ops.relu(y + shortcut)

    @staticmethod
    def mapping(
        in_channels: int,
        planes: int,
        dtype: np.dtype,
        tensors: Arrays,
        prefix: str = "",
        stride: int = 1,
    ) -> dict[str, np.ndarray]:
        """Variables from the checkpoint's convolutions and batch norms behind the prefix."""
        out = planes * EXPANSION
        convolutions = [  # variable, checkpoint's convolution and batch norm, weight shape
            ("conv1", "bn1", "conv1", "bn1", (planes, in_channels, 1, 1)),
            ("conv2", "bn2", "conv2", "bn2", (planes, planes, 3, 3)),
            ("conv3", "bn3", "conv3", "bn3", (out, planes, 1, 1)),
        ]
        if has_shortcut(in_channels, planes, stride):
            shape = (out, in_channels, 1, 1)
            names = ("downsample.conv", "downsample.bn", "downsample.0", "downsample.1")
            convolutions.append((*names, shape))
        arrays: dict[str, np.ndarray] = {}
        for conv, norm, conv_name, norm_name, shape in convolutions:
            name = f"{prefix}{conv_name}.weight"
            arrays[f"{conv}.weight"] = take(tensors, name, shape, dtype)
            norms = BatchNorm2D.mapping(shape[0], dtype, tensors, f"{prefix}{norm_name}.")
            arrays |= prefixed(norm, norms)
        return arrays


def has_shortcut(in_channels: int, planes: int, stride: int) -> bool:
    """Whether a block's shortcut has weights, because input and output differ in size."""
    return stride > 1 or in_channels != planes * EXPANSION


def _pool(x: popxl.Tensor, stride: int) -> popxl.Tensor:
    """Averages stride × stride windows."""
    if stride == 1:
        return x
    return ops.average_pool(x, (stride, stride), stride=(stride, stride))
