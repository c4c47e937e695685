"""The end of the language model: final layer norm and head, cut by columns of the vocabulary."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl_addons.layers import LayerNorm, Linear

from config.config import GPTJConfig
from modelling.parallel import enter_sharded, shard_grouping
from modelling.shards import Arrays, column_shards, take, vector_shards


class LMHead(addons.Module):
    """Layer norm and a linear onto the vocabulary."""

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model. The head is not tied to the embedding.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        self.ln_f = LayerNorm()
        columns = config.embedding.vocab_size // self.r
        self.head = Linear(columns, replica_grouping=shard_grouping(self.r))

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Scores the vocabulary for every position.

        Args:
            x: (b·s, h), equal on all replicas.

        Returns:
            (b·s, v/r), this replica's columns of the logits.
        """
        return self.head(enter_sharded(self.ln_f(x), self.r))

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from ``transformer.ln_f`` and ``lm_head`` behind the prefix."""
        r, h = config.execution.tensor_parallel, config.hidden_size
        v, dtype = config.embedding.vocab_size, config.dtype.as_numpy()
        weight = take(tensors, f"{prefix}lm_head.weight", (v, h), dtype)
        bias = take(tensors, f"{prefix}lm_head.bias", (v,), dtype)
        return {
            "ln_f.weight": take(tensors, f"{prefix}transformer.ln_f.weight", (h,), dtype),
            "ln_f.bias": take(tensors, f"{prefix}transformer.ln_f.bias", (h,), dtype),
            "head.weight": column_shards(weight, r),
            "head.bias": vector_shards(bias, r),
        }
