"""CLIP's attention pool: one vector for a picture. MAGMA itself keeps the grid and goes without."""

from __future__ import annotations

from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Linear

from modelling.shards import Arrays, take

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "c_proj")


class AttentionPool2D(addons.Module):
    """Attends from the mean of a feature map to its positions."""

    def __init__(self, channels: int, heads: int, out_features: int):
        """Fixes the sizes.

        Args:
            channels: Of the features.
            heads: Attention heads.
            out_features: Of the vector.
        """
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(channels)
        self.k_proj = Linear(channels)
        self.v_proj = Linear(channels)
        self.c_proj = Linear(out_features)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Pools the positions of a feature map.

        Args:
            x: (b, c, y, x).

        Returns:
            (b, out_features).
        """
        b, c, height, width = x.shape
        positions = height * width
        grid = ops.transpose(ops.reshape(x, (b, c, positions)), (0, 2, 1))
        tokens = ops.concat([ops.mean(grid, axis=1, keepdims=True), grid], axis=1)
        fresh = partial(np.zeros, (positions + 1, c), dtype="float32")
        tokens = tokens + self.add_variable_input("positional_embedding", fresh, x.dtype)
        query = self.q_proj(tokens[:, :1])
        q = self._split_heads(query * popxl.constant((c // self.heads) ** -0.5, x.dtype))
        k = self._split_heads(self.k_proj(tokens))
        v = self._split_heads(self.v_proj(tokens))
        weights = ops.softmax(q @ ops.transpose(k, (0, 1, 3, 2)), axis=-1)  # (b, n, 1, y·x + 1)
        return self.c_proj(ops.reshape(weights @ v, (b, c)))

    def _split_heads(self, x: popxl.Tensor) -> popxl.Tensor:
        """From (b, positions, c) to (b, n, positions, c/n)."""
        b, positions, c = x.shape
        split = ops.reshape(x, (b, positions, self.heads, c // self.heads))
        return ops.transpose(split, (0, 2, 1, 3))

    @staticmethod
    def mapping(
        channels: int,
        out_features: int,
        positions: int,
        dtype: np.dtype,
        tensors: Arrays,
        prefix: str = "",
    ) -> dict[str, np.ndarray]:
        """Variables from CLIP's names; positions is the number of cells of the feature map."""
        name = "positional_embedding"
        arrays = {name: take(tensors, prefix + name, (positions + 1, channels), dtype)}
        for name in PROJECTIONS:
            out = out_features if name == "c_proj" else channels
            weight = take(tensors, f"{prefix}{name}.weight", (out, channels), dtype)
            arrays[f"{name}.weight"] = weight.T
            arrays[f"{name}.bias"] = take(tensors, f"{prefix}{name}.bias", (out,), dtype)
        return arrays
