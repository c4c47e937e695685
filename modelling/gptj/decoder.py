"""One block of the language model: attention and perceptron side by side, and their adapters."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl_addons.layers import LayerNorm

from config.config import AdapterConfig, GPTJConfig
from modelling.adapters import Adapter
from modelling.gptj.attention import Attention
from modelling.gptj.feed_forward import FeedForward
from modelling.gptj.positions import Place
from modelling.parallel import leave_sharded
from modelling.shards import Arrays, prefixed, take
from utils.checkpoint_layout import ATTENTION_PATHS, MLP_PATHS

_NORM = ("weight", "bias")


class DecoderBlock(addons.Module):
    """x + a + f, with n = norm(x), a = attention(n), f = perceptron(n), and adapters to both.

    A ``normal`` adapter stands behind: a + adapter(a). A parallel one stands beside: a +
    adapter(n), scaled if it has a scale. So for f.
    """

    def __init__(self, config: GPTJConfig):
        """Fixes the sizes.

        Args:
            config: Of the language model; either of its adapters may be absent.
        """
        super().__init__()
        self.r = config.execution.tensor_parallel
        adapters = (config.attention_adapter, config.ff_adapter)
        self.is_behind = [adapter.mode == "normal" for adapter in adapters]
        self.ln_1 = LayerNorm()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_adapter, self.ff_adapter = (
            Adapter(config, adapter) if adapter.mode is not None else None for adapter in adapters
        )

    def build(self, x: popxl.Tensor, place: Place | None = None) -> popxl.Tensor:
        """One block, with as few sums over the replicas as its function allows.

        An adapter behind a part needs the finished part, which is a sum of its own. All else that
        replicas hold parts of is summed once, at the end.

        Args:
            x: (b·m, h), equal on all replicas.
            place: Where the rows stand; None for b whole sequences.

        Returns:
            (b·m, h), equal on all replicas.
        """
        n = self.ln_1(x)
        attended = self.attention(n, place, reduce=False)
        f = self.feed_forward(n, reduce=False)
        whole, parts = [x], []
        for part, bias, adapter, behind in (
            (attended, None, self.attention_adapter, self.is_behind[0]),
            (f, self.feed_forward.bias, self.ff_adapter, self.is_behind[1]),
        ):
            if behind:
                part = leave_sharded(part, self.r)
                part = part if bias is None else part + bias
                whole.append(part)
            else:
                parts.append(part)
                whole += [] if bias is None else [bias]
            if adapter is not None:
                parts.append(adapter(part if behind else n, reduce=False))
                whole.append(adapter.bias)
        return _sum([*whole, leave_sharded(_sum(parts), self.r)])

    @staticmethod
    def mapping(config: GPTJConfig, tensors: Arrays, prefix: str = "") -> dict[str, np.ndarray]:
        """Variables from one block of the checkpoint, behind a prefix such as ``….h.0.``."""
        shape, dtype = (config.hidden_size,), config.dtype.as_numpy()
        arrays = prefixed(
            "ln_1", {key: take(tensors, f"{prefix}ln_1.{key}", shape, dtype) for key in _NORM}
        )
        for name, part, adapter_name, paths in (
            ("attention", Attention, "attention_adapter", ATTENTION_PATHS),
            ("feed_forward", FeedForward, "ff_adapter", MLP_PATHS),
        ):
            adapter: AdapterConfig = getattr(config, adapter_name)
            base, path = paths[adapter.mode]
            arrays |= prefixed(name, part.mapping(config, tensors, f"{prefix}{base}."))
            if adapter.mode is not None:
                found = Adapter.mapping(config, adapter, tensors, f"{prefix}{path}")
                arrays |= prefixed(adapter_name, found)
        return arrays


def _sum(tensors: list[popxl.Tensor]) -> popxl.Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
