"""Causal self-attention with rotary positions, cut by heads."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Linear
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_tables

from config.config import GPTJConfig
from modelling.parallel import enter_sharded, leave_sharded, shard_grouping
from modelling.shards import Arrays, column_shards, frozen, row_shards, take


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

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Attends to earlier positions.

        Args:
            x: (b·s, h), equal on all replicas.

        Returns:
            (b·s, h/r), this replica's heads side by side.
        """
        b = self.config.execution.micro_batch_size
        s = x.shape[0] // b
        d = self.config.head_size
        qkv = self.qkv(x)
        n = qkv.shape[1] // (3 * d)
        q, k, v = ops.split(ops.reshape(qkv, (b, s, n, 3 * d)), 3, axis=3)
        q, k = self._rotate(q, k)
        # Scaled before the product, float16 cannot overflow in it.
        q = ops.transpose(q * popxl.constant(d**-0.5, q.dtype), (0, 2, 1, 3))
        k, v = ops.transpose(k, (0, 2, 3, 1)), ops.transpose(v, (0, 2, 1, 3))
        read = self._attend(q, k, v)  # (b, n/r, s, d)
        return ops.reshape(ops.transpose(read, (0, 2, 1, 3)), (b * s, n * d))

    def _rotate(self, q: popxl.Tensor, k: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Rotates the first channels of each head of (b, s, n/r, d) by its position."""
        attention = self.config.attention
        dim = attention.rotary_dim
        # Rounding the angles would get them wrong by up to 0.4 rad in half precision: only their
        # sines and cosines are rounded.
        base = attention.rotary_positional_embeddings_base
        tables = trig_tables(q.shape[1], dim, base, np_dtype="float64")
        sin, cos = (popxl.constant(table.astype(q.dtype.as_numpy()), q.dtype) for table in tables)
        return rotary_pos_embed(q, sin, cos, dim), rotary_pos_embed(k, sin, cos, dim)

    def _attend(self, q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
        """Reads v for each query; q and v are (b, n/r, s, d), k is (b, n/r, d, s).

        Queries are cut into slices along the sequence, which bounds the scores' memory. Keys behind
        a slice's last query are hidden from all of it, so it leaves them out.
        """
        s, slices = q.shape[2], self.config.execution.attention_serialisation
        if slices == 1:
            return _attend_slice(q, k, v)
        sizes = [len(part) for part in np.array_split(np.arange(s), slices)]
        read, stop = [], 0
        for part in ops.split(q, sizes, axis=2):
            stop += part.shape[2]
            read.append(_attend_slice(part, k[:, :, :, :stop], v[:, :, :stop]))
        return ops.concat(read, axis=2)


def _attend_slice(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
    """Reads v for queries that are the last of the keys' positions."""
    scores = q @ k
    queries, keys = scores.shape[-2:]
    visible = np.tril(np.ones((queries, keys), bool), keys - queries)
    # Replacing hidden scores, not shifting them, gives them exactly no weight in any precision.
    hidden = popxl.constant(np.finfo(scores.dtype.as_numpy()).min, scores.dtype, "hidden")
    scores = ops.where(popxl.constant(visible, popxl.bool, "visible"), scores, hidden)
    return ops.softmax(scores, axis=-1) @ v


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

    def build(self, x: popxl.Tensor, reduce: bool = True) -> popxl.Tensor:
        """Attends within each of the b sequences.

        Args:
            x: (b·s, h), equal on all replicas.
            reduce: False leaves the sum over the replicas to the caller.

        Returns:
            (b·s, h): equal on all replicas, or one replica's part of the sum.
        """
        y = self.output(self.heads(enter_sharded(x, self.r)))
        return leave_sharded(y, self.r) if reduce else y

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from the four projections behind the prefix, such as ``….attn.attention.``.

        Queries, keys and values are copied, to lie together per head.
        """
        r, h, n = config.execution.tensor_parallel, config.hidden_size, config.attention.heads
        dtype = config.dtype.as_numpy()
        q, k, v = (take(tensors, f"{prefix}{x}_proj.weight", (h, h), dtype) for x in "qkv")
        per_head = (n, h // n, h)
        qkv = frozen(np.stack([w.reshape(per_head) for w in (q, k, v)], axis=1))  # (n, 3, d, h)
        output = take(tensors, f"{prefix}out_proj.weight", (h, h), dtype)
        return {
            "heads.qkv.weight": column_shards(qkv.reshape(3 * h, h), r),
            "output.weight": row_shards(output, r),
        }
