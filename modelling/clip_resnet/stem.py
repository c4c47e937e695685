"""The stem of the picture encoder: three convolutions and a pool, a quarter of the resolution."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Conv2D

from config.config import ResNetConfig
from modelling.clip_resnet.batch_norm import BatchNorm2D
from modelling.shards import Arrays, prefixed, take

IMAGE_CHANNELS = 3


class Stem(addons.Module):
    """Three 3×3 convolutions, the first with stride 2, then an average pool of 2×2."""

    def __init__(self, config: ResNetConfig):
        """Fixes the sizes.

        Args:
            config: Its width decides the channels.
        """
        super().__init__()
        first, second, third = _channels(config)[1:]
        pad = (1, 1, 1, 1)
        self.conv1 = Conv2D(first, (3, 3), strides=(2, 2), paddings=pad, bias=False)
        self.bn1 = BatchNorm2D()
        self.conv2 = Conv2D(second, (3, 3), paddings=pad, bias=False)
        self.bn2 = BatchNorm2D()
        self.conv3 = Conv2D(third, (3, 3), paddings=pad, bias=False)
        self.bn3 = BatchNorm2D()

    def build(self, image: popxl.Tensor) -> popxl.Tensor:
        """Features of a normalised picture.

        Args:
            image: (b, 3, y, x).

        Returns:
            (b, width, y/4, x/4).
        """
        x = ops.relu(self.bn1(self.conv1(image)))
        x = ops.relu(self.bn2(self.conv2(x)))
        x = ops.relu(self.bn3(self.conv3(x)))
        # PopXL's pools move by 1 unless told otherwise.
        return ops.average_pool(x, (2, 2), stride=(2, 2))

    @staticmethod
    def mapping(config: ResNetConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the checkpoint's ``conv{1..3}`` and ``bn{1..3}`` behind the prefix."""
        dtype = config.dtype.as_numpy()
        channels = _channels(config)
        arrays: dict[str, np.ndarray] = {}
        for i in (1, 2, 3):
            shape = (channels[i], channels[i - 1], 3, 3)
            arrays[f"conv{i}.weight"] = take(tensors, f"{prefix}conv{i}.weight", shape, dtype)
            norm = BatchNorm2D.mapping(channels[i], dtype, tensors, f"{prefix}bn{i}.")
            arrays |= prefixed(f"bn{i}", norm)
        return arrays


def _channels(config: ResNetConfig) -> tuple[int, int, int, int]:
    """Channels before, between and after the three convolutions."""
    half = config.width // 2
    return IMAGE_CHANNELS, half, half, config.width
