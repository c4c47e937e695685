"""Embedding, whole or cut over the vocabulary."""

from __future__ import annotations

from math import ceil

import numpy as np
import popxl
from popxl import ReplicaGrouping, ops
from popxl_addons._initialisers import TruncatedNormal
from popxl_addons.module import Module

# Rows of a shard are a multiple of this, also if there is one shard: checkpoints of
# applications are laid out so.
MULTISLICE_MAGIC_NUMBER = 16


class Embedding(Module):
    """Rows of a table, chosen by index.

    Args:
        dtype: of the table.
        vocab_size: number of rows.
        hidden_size: size of a row.
        axis: of the table from which to choose.
        replica_grouping: replicas with the same shard. The table is cut in as many shards as
            there are groups.
    """

    def __init__(
        self,
        dtype: popxl.dtype,
        vocab_size: int,
        hidden_size: int,
        axis: int = 0,
        replica_grouping: ReplicaGrouping | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.axis = axis
        self.replica_grouping = replica_grouping
        self.n_shards = replica_grouping.num_groups if replica_grouping is not None else 1
        self.vocab_shard_size = self.get_vocab_shard_size(vocab_size, self.n_shards)
        self.offsets = self.get_offsets(vocab_size, self.n_shards)

    @staticmethod
    def get_vocab_shard_size(vocab_size: int, n_shards: int) -> int:
        """Rows of a shard, a multiple of 16."""
        rows = ceil(vocab_size / n_shards)
        return MULTISLICE_MAGIC_NUMBER * ceil(rows / MULTISLICE_MAGIC_NUMBER)

    @staticmethod
    def get_offsets(vocab_size: int, n_shards: int) -> np.ndarray:
        """First index of each shard."""
        return np.arange(n_shards) * Embedding.get_vocab_shard_size(vocab_size, n_shards)

    def build(self, indices: popxl.Tensor) -> popxl.Tensor:
        """Choose rows.

        Args:
            indices: signed. With several shards the caller subtracts the offset of the
                replica's shard; indices outside of it give rows of zeros, so the sum over the
                shards is the embedding.

        Returns:
            (*indices.shape, hidden_size) for axis 0.
        """
        self.weight = self.add_variable_input(
            "weight",
            TruncatedNormal((self.vocab_shard_size, self.hidden_size)),
            self.dtype,
            replica_grouping=self.replica_grouping,
        )
        return ops.gather(self.weight, indices, axis=self.axis, zero_OOR=self.n_shards > 1)
