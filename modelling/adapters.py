"""Bottleneck adapters: the small trained layers that make a frozen language model see pictures."""

from __future__ import annotations

from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import LayerNorm, Linear

from config.config import AdapterConfig, GPTJConfig
from modelling.parallel import enter_sharded, leave_sharded, shard_grouping
from modelling.shards import Arrays, column_shards, prefixed, row_shards, take, vector_shards

_NORM = ("weight", "bias")


class Adapter(addons.Module):
    """Down, ReLU, up, times a learned scale where there is one: what an adapter adds.

    The inner channels are cut.

    Attributes:
        bias: After build, the bias of the second linear, scaled; equal on all replicas.
    """

    def __init__(self, config: GPTJConfig, adapter: AdapterConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model.
            adapter: Which of its adapters.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        self.scaled = adapter.mode == "scaled_parallel"
        grouping = shard_grouping(self.r)
        self.ln = LayerNorm() if adapter.layer_norm else None
        self.compress = Linear(config.inner_of(adapter) // self.r, replica_grouping=grouping)
        self.expand = Linear(config.hidden_size, bias=False, replica_grouping=grouping)

    def build(self, x: popxl.Tensor, reduce: bool = True) -> popxl.Tensor:
        """Computes what the adapter adds to x; the caller adds x itself.

        Args:
            x: (b·s, h), equal on all replicas.
            reduce: False leaves the sum over the replicas, and after it the bias, to the caller,
                who may have other partial results to sum with.

        Returns:
            (b·s, h): equal on all replicas, or one replica's part of the sum.
        """
        if self.ln is not None:
            x = self.ln(x)
        inner = ops.relu(self.compress(enter_sharded(x, self.r)))  # (b·s, h/factor/r)
        y = self.expand(inner)
        fresh = partial(np.zeros, y.shape[-1:], dtype="float32")
        self.bias = self.add_variable_input("bias", fresh, x.dtype)
        if self.scaled:
            one = partial(np.ones, (1,), dtype="float32")
            scale = self.add_variable_input("scale", one, x.dtype)
            y, self.bias = y * scale, self.bias * scale
        # Every replica holds the whole bias, so it is added once, after the sum.
        return leave_sharded(y, self.r) + self.bias if reduce else y

    @staticmethod
    def mapping(
        config: GPTJConfig, adapter: AdapterConfig, tensors: Arrays, name: str
    ) -> dict[str, np.ndarray]:
        """Variables from a stack of linears, whose name is such as ``….mlp.1.adapter``."""
        dtype, prefix = config.dtype.as_numpy(), f"{name}."
        r, h, inner = config.execution.tensor_parallel, config.hidden_size, config.inner_of(adapter)
        arrays: dict[str, np.ndarray] = {}
        # The checkpoint numbers the members of the stack; a layer norm comes first.
        down, up = ("0", "2") if not adapter.layer_norm else ("1", "3")
        if adapter.layer_norm:
            norm = {key: take(tensors, f"{prefix}0.{key}", (h,), dtype) for key in _NORM}
            arrays |= prefixed("ln", norm)
        weight = take(tensors, f"{prefix}{down}.weight", (inner, h), dtype)
        bias = take(tensors, f"{prefix}{down}.bias", (inner,), dtype)
        arrays["compress.weight"] = column_shards(weight, r)
        arrays["compress.bias"] = vector_shards(bias, r)
        weight = take(tensors, f"{prefix}{up}.weight", (h, inner), dtype)
        arrays["expand.weight"] = row_shards(weight, r)
        arrays["bias"] = take(tensors, f"{prefix}{up}.bias", (h,), dtype)
        if adapter.mode == "scaled_parallel":
            arrays["scale"] = take(tensors, f"{name}_scale", (1,), dtype)
        return arrays
