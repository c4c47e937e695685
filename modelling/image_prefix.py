"""From pictures to positions of the language model: encoder, projection, layer norm."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import LayerNorm, Linear

from config.config import MagmaConfig
from modelling.clip_resnet.resnet import ModifiedResNet
from modelling.shards import Arrays, prefixed, take


class ImageProjection(addons.Module):
    """Makes each cell of a feature map one position of the language model.

    Every replica computes the same: nothing here is cut.
    """

    def __init__(self, config: MagmaConfig):
        """Fixes the sizes.

        Args:
            config: Of the whole model; its hidden size and precision decide the result's.
        """
        super().__init__()
        self.dtype = config.transformer.dtype
        self.proj = Linear(config.transformer.hidden_size)
        self.ln = LayerNorm()

    def build(self, features: popxl.Tensor) -> popxl.Tensor:
        """Projects and normalises feature maps.

        Args:
            features: (b, c, y, x), of the encoder's precision.

        Returns:
            (b, i, h), of the language model's precision. Position i of a picture is the cell in
            row i // x and column i % x.
        """
        return self.project(features)

    def project(self, features: popxl.Tensor) -> popxl.Tensor:
        """What :meth:`build` does, for modules that have features of their own."""
        b, c, height, width = features.shape
        i = height * width
        cells = ops.transpose(ops.reshape(features, (b, c, i)), (0, 2, 1))
        if cells.dtype != self.dtype:
            cells = ops.cast(cells, self.dtype)
        # PopXL's layer norm needs rank 2.
        x = self.ln(self.proj(ops.reshape(cells, (b * i, c))))
        return ops.reshape(x, (b, i, x.shape[-1]))

    @staticmethod
    def mapping(config: MagmaConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the checkpoint's ``proj`` and ``ln`` behind the prefix."""
        dtype = config.transformer.dtype.as_numpy()
        h = config.transformer.hidden_size
        weight = take(tensors, f"{prefix}proj.weight", (h, config.visual.embed_dim), dtype)
        return {
            "proj.weight": weight.T,
            "proj.bias": take(tensors, f"{prefix}proj.bias", (h,), dtype),
            "ln.weight": take(tensors, f"{prefix}ln.weight", (h,), dtype),
            "ln.bias": take(tensors, f"{prefix}ln.bias", (h,), dtype),
        }


class ImagePrefix(ImageProjection):
    """The encoder and the projection in one graph."""

    def __init__(self, config: MagmaConfig):
        """Fixes the sizes.

        Args:
            config: Of the whole model.
        """
        super().__init__(config)
        self.enc = ModifiedResNet(config.visual)

    def build(self, image: popxl.Tensor) -> popxl.Tensor:
        """Turns pictures into positions.

        Args:
            image: (b, 3, y, x) normalised pictures of the encoder's precision.

        Returns:
            (b, i, h), of the language model's precision.
        """
        return self.project(self.enc(image))

    @staticmethod
    def mapping(config: MagmaConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the checkpoint's ``enc``, ``proj`` and ``ln`` behind the prefix."""
        encoder = ModifiedResNet.mapping(config.visual, tensors, f"{prefix}enc.")
        return prefixed("enc", encoder) | ImageProjection.mapping(config, tensors, prefix)
