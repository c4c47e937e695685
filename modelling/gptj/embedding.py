"""The word embedding, cut by rows of the vocabulary."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl_addons.layers import Embedding

from config.config import GPTJConfig
from modelling.parallel import leave_sharded, shard_grouping
from modelling.shards import Arrays, take, vocabulary_shards


class Embeddings(addons.Module):
    """Looks words up. GPT-J has no learned positions."""

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Its real vocabulary size is the number of rows in use.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        self.word = Embedding(
            config.dtype,
            config.embedding.real_vocab_size,
            config.hidden_size,
            replica_grouping=shard_grouping(self.r),
        )

    def build(self, words: popxl.Tensor) -> popxl.Tensor:
        """Embeds token ids.

        Args:
            words: (b·t,) int32, from which each replica's offset has been subtracted: ids of other
                replicas' rows are negative or too large, and count as zero rows here.

        Returns:
            (b·t, h), equal on all replicas.
        """
        return leave_sharded(self.word(words), self.r)

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the checkpoint's ``wte``."""
        shape = (config.embedding.real_vocab_size, config.hidden_size)
        dtype = config.dtype.as_numpy()
        table = take(tensors, f"{prefix}wte.weight", shape, dtype, spare_rows=True)
        rows = config.embedding_rows_per_shard
        return {"word.weight": vocabulary_shards(table, rows, config.execution.tensor_parallel)}
