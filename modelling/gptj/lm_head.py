"""The end of the language model: final layer norm and head, cut by columns of the vocabulary."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import LayerNorm, Linear
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss

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


class Scores(LMHead):
    """The head, and of its distributions the logarithm of one probability each."""

    # The head of one more input.
    def build(self, x: popxl.Tensor, targets: popxl.Tensor) -> popxl.Tensor:  # type: ignore[override]
        """Scores one id behind every position.

        Args:
            x: (n, h), equal on all replicas.
            targets: (n,) int32, from which each replica's first column has been subtracted: ids of
                other replicas' columns are negative or too large.

        Returns:
            (n,) float32, equal on all replicas: log softmax(logits)[target].
        """
        grouping = shard_grouping(self.r)
        group = None if grouping is None else grouping.transpose()
        # The sum over the vocabulary is not left to half precision.
        logits = ops.cast(super().build(x), popxl.float32)
        return -cross_entropy_sharded_loss(
            logits, targets, replica_grouping=group, reduction="none"
        )
