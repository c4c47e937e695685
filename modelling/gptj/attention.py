"""Causal self-attention with rotary positions, cut by heads."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Linear
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed

from config.config import GPTJConfig
from modelling.gptj.positions import Place, whole_sequences
from modelling.parallel import enter_sharded, leave_sharded, shard_grouping
from modelling.shards import Arrays, column_shards, frozen, row_shards, take
from utils.folder_layout import JOINED_PROJECTION


class AttentionHeads(addons.Module):
    """Queries, keys and values of one replica's heads, and what the heads read from them."""

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model.
        """
        super().__init__()
        self.config = config
        r = config.execution.tensor_parallel
        width = 3 * config.hidden_size // r
        # The columns lie per head: [n/r][q, k, v][d].
        self.qkv = Linear(width, bias=False, replica_grouping=shard_grouping(r))

    def build(self, x: popxl.Tensor, place: Place | None = None) -> popxl.Tensor:
        """Attends to earlier positions.

        Args:
            x: (b·m, h), equal on all replicas.
            place: Where the rows stand; None for b whole sequences.

        Returns:
            (b·m, h/r), this replica's heads side by side.
        """
        rows = x.shape[0]
        if place is None:
            s = rows // self.config.execution.micro_batch_size
            place = whole_sequences(self.config, s)
        d = self.config.head_size
        qkv = self.qkv(x)
        n = qkv.shape[1] // (3 * d)
        q, k, v = ops.split(ops.reshape(qkv, (1, rows, n, 3 * d)), 3, axis=3)
        # Scaled before the product, float16 cannot overflow in it.
        q = self._rotate(q, place) * popxl.constant(d**-0.5, q.dtype)
        k = self._rotate(k, place)
        q, k, v = (_by_head(t, place.b) for t in (q, k, v))
        keys, values = place.remember(k, v)
        keys = ops.transpose(keys, (0, 1, 3, 2))
        read = self._attend(q, keys, values, place.visible)  # (b, n/r, m, d)
        return ops.reshape(ops.transpose(read, (0, 2, 1, 3)), (rows, n * d))

    def _rotate(self, x: popxl.Tensor, place: Place) -> popxl.Tensor:
        """Rotates the first channels of each head of (1, b·m, n/r, d) by its position."""
        return rotary_pos_embed(x, place.sin, place.cos, self.config.attention.rotary_dim)

    def _attend(
        self, q: popxl.Tensor, keys: popxl.Tensor, values: popxl.Tensor, visible: popxl.Tensor
    ) -> popxl.Tensor:
        """Reads values for each query.

        Queries are cut into slices, which bounds the scores' memory. Keys behind a slice's last
        query are hidden from all of it, so it leaves them out.

        Args:
            q: (b, n/r, m, d), none before the last m of the k keys' positions.
            keys: (b, n/r, d, k).
            values: (b, n/r, k, d).
            visible: (b or 1, 1, m, k).
        """
        m, k = visible.shape[2:]
        slices = min(self.config.execution.attention_serialisation, m)
        if slices == 1:
            return _attend_slice(q, keys, values, visible)
        sizes = [len(part) for part in np.array_split(np.arange(m), slices)]
        read, start = [], 0
        for part in ops.split(q, sizes, axis=2):
            stop = start + part.shape[2]
            seen = k - m + stop
            mask = visible[:, :, start:stop, :seen]
            read.append(_attend_slice(part, keys[:, :, :, :seen], values[:, :, :seen], mask))
            start = stop
        return ops.concat(read, axis=2)


def _by_head(x: popxl.Tensor, b: int) -> popxl.Tensor:
    """(1, b·m, n/r, d) to (b, n/r, m, d)."""
    _, rows, n, d = x.shape
    return ops.transpose(ops.reshape(x, (b, rows // b, n, d)), (0, 2, 1, 3))


def _attend_slice(
    q: popxl.Tensor, keys: popxl.Tensor, values: popxl.Tensor, visible: popxl.Tensor
) -> popxl.Tensor:
    """Reads values for some queries."""
    scores = q @ keys
    # Replacing hidden scores, not shifting them, gives them exactly no weight in any precision.
    hidden = popxl.constant(np.finfo(scores.dtype.as_numpy()).min, scores.dtype, "hidden")
    scores = ops.where(visible, scores, hidden)
    return ops.softmax(scores, axis=-1) @ values


class Attention(addons.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        self.heads = AttentionHeads(config)
        grouping = shard_grouping(self.r)
        self.output = Linear(config.hidden_size, bias=False, replica_grouping=grouping)

    def build(
        self, x: popxl.Tensor, place: Place | None = None, reduce: bool = True
    ) -> popxl.Tensor:
        """Attends within each of the b sequences.

        Args:
            x: (b·m, h), equal on all replicas.
            place: Where the rows stand; None for b whole sequences.
            reduce: False leaves the sum over the replicas to the caller.

        Returns:
            (b·m, h): equal on all replicas, or one replica's part of the sum.
        """
        y = self.output(self.heads(enter_sharded(x, self.r), place))
        return leave_sharded(y, self.r) if reduce else y

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the four projections behind the prefix, such as ``….attn.attention.``.

        Queries, keys and values lie together per head. A model folder has them so; those of other
        checkpoints are copied.
        """
        r, h, n = config.execution.tensor_parallel, config.hidden_size, config.attention.heads
        dtype, d = config.dtype.as_numpy(), config.head_size
        joined = f"{prefix}{JOINED_PROJECTION}.weight"
        if joined in tensors:
            qkv = take(tensors, joined, (n, 3, d, h), dtype)
        else:
            parts = (take(tensors, f"{prefix}{x}_proj.weight", (h, h), dtype) for x in "qkv")
            qkv = frozen(np.stack([w.reshape(n, d, h) for w in parts], axis=1))
        output = take(tensors, f"{prefix}out_proj.weight", (h, h), dtype)
        return {
            "heads.qkv.weight": column_shards(qkv.reshape(3 * h, h), r),
            "output.weight": row_shards(output, r),
        }
