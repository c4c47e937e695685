"""Layers. Those with ops of their own are imported from their modules."""

from popxl import ops
from popxl_addons.layers.conv import Conv2D
from popxl_addons.layers.embedding import MULTISLICE_MAGIC_NUMBER, Embedding
from popxl_addons.layers.group_norm import GroupNorm
from popxl_addons.layers.layer_norm import LayerNorm
from popxl_addons.layers.linear import Linear
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict

__all__ = [
    "MULTISLICE_MAGIC_NUMBER",
    "Conv2D",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "NamedTensors",
    "WeightsDict",
    "ops",
]
