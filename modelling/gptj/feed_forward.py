"""The two-layer perceptron of a block, cut by inner channels."""

from __future__ import annotations

from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Linear

from config.config import GPTJConfig
from modelling.parallel import enter_sharded, leave_sharded, shard_grouping
from modelling.shards import Arrays, column_shards, row_shards, take, vector_shards


class FeedForward(addons.Module):
    """Linear, GELU (its tanh form), linear.

    Attributes:
        bias: After build, the bias of the second linear, equal on all replicas.
    """

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        grouping = shard_grouping(self.r)
        self.intermediate = Linear(config.inner_size // self.r, replica_grouping=grouping)
        self.output = Linear(config.hidden_size, bias=False, replica_grouping=grouping)

    def build(self, x: popxl.Tensor, reduce: bool = True) -> popxl.Tensor:
        """Applies the perceptron to every position.

        Args:
            x: (b·s, h), equal on all replicas.
            reduce: False leaves the sum over the replicas, and after it the bias, to the caller.

        Returns:
            (b·s, h): equal on all replicas, or one replica's part of the sum.
        """
        inner = ops.gelu(self.intermediate(enter_sharded(x, self.r)))  # (b·s, 4·h/r)
        y = self.output(inner)
        fresh = partial(np.zeros, y.shape[-1:], dtype="float32")
        self.bias = self.add_variable_input("bias", fresh, x.dtype)
        # Every replica holds the whole bias, so it is added once, after the sum.
        return leave_sharded(y, self.r) + self.bias if reduce else y

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from ``c_fc`` and ``c_proj`` behind the prefix, such as ``….mlp.0.``."""
        r, h = config.execution.tensor_parallel, config.hidden_size
        inner, dtype = config.inner_size, config.dtype.as_numpy()
        weight = take(tensors, f"{prefix}c_fc.weight", (inner, h), dtype)
        bias = take(tensors, f"{prefix}c_fc.bias", (inner,), dtype)
        output = take(tensors, f"{prefix}c_proj.weight", (h, inner), dtype)
        return {
            "intermediate.weight": column_shards(weight, r),
            "intermediate.bias": vector_shards(bias, r),
            "output.weight": row_shards(output, r),
            "bias": take(tensors, f"{prefix}c_proj.bias", (h,), dtype),
        }
