"""One block of the language model: attention and perceptron side by side, and an adapter."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl_addons.layers import LayerNorm

from config.config import GPTJConfig
from modelling.adapters import Adapter
from modelling.gptj.attention import Attention
from modelling.gptj.feed_forward import FeedForward
from modelling.gptj.positions import Place
from modelling.parallel import leave_sharded
from modelling.shards import Arrays, prefixed, take

_NORM = ("weight", "bias")


class DecoderBlock(addons.Module):
    """x + attention(n) + f + adapter(f), with n = norm(x) and f = perceptron(n)."""

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model; its ff_adapter may be absent.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        self.ln_1 = LayerNorm()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.ff_adapter = Adapter(config) if has_adapter(config) else None

    def build(self, x: popxl.Tensor, place: Place | None = None) -> popxl.Tensor:
        """One block, with as few sums over the replicas as its function allows.

        The adapter needs the finished perceptron output, which is one sum; its own partial result
        joins attention's in a second. Without an adapter one sum serves both branches.

        Args:
            x: (b·m, h), equal on all replicas.
            place: Where the rows stand; None for b whole sequences.

        Returns:
            (b·m, h), equal on all replicas.
        """
        n = self.ln_1(x)
        partial_sum = self.attention(n, place, reduce=False)
        if self.ff_adapter is None:
            partial_sum = partial_sum + self.feed_forward(n, reduce=False)
            return x + leave_sharded(partial_sum, self.r) + self.feed_forward.bias
        f = self.feed_forward(n)
        partial_sum = partial_sum + self.ff_adapter(f, reduce=False)
        return x + f + leave_sharded(partial_sum, self.r) + self.ff_adapter.bias

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from one block of the checkpoint, behind a prefix such as ``….h.0.``."""
        shape, dtype = (config.hidden_size,), config.dtype.as_numpy()
        norm = {key: take(tensors, f"{prefix}ln_1.{key}", shape, dtype) for key in _NORM}
        attention = Attention.mapping(config, tensors, f"{prefix}attn.attention.")
        arrays = prefixed("ln_1", norm) | prefixed("attention", attention)
        # Behind an adapter, the perceptron is the first of a pair.
        mlp = f"{prefix}mlp.0." if has_adapter(config) else f"{prefix}mlp."
        arrays |= prefixed("feed_forward", FeedForward.mapping(config, tensors, mlp))
        if has_adapter(config):
            adapter = Adapter.mapping(config, tensors, f"{prefix}mlp.1.adapter.")
            arrays |= prefixed("ff_adapter", adapter)
        return arrays


def has_adapter(config: GPTJConfig) -> bool:
    """Whether blocks have an adapter behind their perceptron."""
    return config.ff_adapter.mode is not None
