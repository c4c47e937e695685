"""CLIP's modified ResNet without its attention pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import popxl
import popxl_addons as addons

from config.config import ResNetConfig
from modelling.clip_resnet.bottleneck import EXPANSION, Bottleneck, has_shortcut
from modelling.clip_resnet.stem import Stem
from modelling.shards import Arrays, prefixed


@dataclass(frozen=True)
class BlockShape:
    """The sizes of one residual block.

    Attributes:
        layer: The layer it belongs to, from 1.
        index: Its place in the layer, from 0.
        in_channels: Channels of its input.
        planes: Channels between its convolutions.
        stride: By how much it makes each side smaller.
    """

    layer: int
    index: int
    in_channels: int
    planes: int
    stride: int

    @property
    def key(self) -> str:
        """Where its variables lie in the encoder."""
        return f"layer.{self.layer}.{self.index}"

    def module(self) -> Bottleneck:
        """A block of these sizes."""
        return Bottleneck(self.in_channels, self.planes, self.stride)


def block_shapes(config: ResNetConfig) -> list[BlockShape]:
    """All residual blocks in the order in which pictures pass them."""
    shapes = []
    channels = config.width
    for layer, blocks in enumerate(config.layers, start=1):
        planes = config.width * 2 ** (layer - 1)
        for index in range(blocks):
            stride = 2 if layer > 1 and index == 0 else 1
            shapes.append(BlockShape(layer, index, channels, planes, stride))
            channels = planes * EXPANSION
    return shapes


class ModifiedResNet(addons.Module):
    """Stem and four layers of residual blocks: 1/32 of the resolution, 32·width channels."""

    def __init__(self, config: ResNetConfig):
        """Fixes the sizes.

        Args:
            config: Width and the number of blocks of each layer.
        """
        super().__init__()
        self.config = config
        self.stem = Stem(config)

    def build(self, image: popxl.Tensor) -> popxl.Tensor:
        """Encodes normalised pictures.

        The blocks of a layer after its first are alike: they call one graph.

        Args:
            image: (b, 3, y, x).

        Returns:
            (b, 32·width, y/32, x/32).
        """
        x = self.stem(image)
        for shape in block_shapes(self.config):
            if shape.index < 2:
                factories, graph = shape.module().create_graph(x)
            # Overwriting merges the block into the layer's tree, it replaces no variable.
            args = self.add_variable_inputs(shape.key, factories, overwrite=True)
            (x,) = graph.bind(args).call(x)
        return x

    @staticmethod
    def mapping(config: ResNetConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from CLIP's names behind the prefix."""
        arrays = prefixed("stem", Stem.mapping(config, tensors, prefix))
        dtype = config.dtype.as_numpy()
        for shape in block_shapes(config):
            name = f"{prefix}layer{shape.layer}.{shape.index}."
            block = Bottleneck.mapping(
                shape.in_channels, shape.planes, dtype, tensors, name, shape.stride
            )
            arrays |= prefixed(shape.key, block)
        return arrays


def convolution_flops(config: ResNetConfig) -> int:
    """Floating-point operations of the encoder's convolutions for one picture, 2 per multiply-add.

    Odd sides are floored, as the pools do.
    """
    half = config.width // 2
    side = (config.image_resolution + 1) // 2
    flops = 2 * 9 * side**2 * (3 * half + half * half + half * config.width)
    side //= 2
    for shape in block_shapes(config):
        out = shape.planes * EXPANSION
        small = side // shape.stride
        full_size = shape.in_channels * shape.planes + 9 * shape.planes**2
        reduced = shape.planes * out
        if has_shortcut(shape.in_channels, shape.planes, shape.stride):
            reduced += shape.in_channels * out
        flops += 2 * (side**2 * full_size + small**2 * reduced)
        side = small
    return flops
