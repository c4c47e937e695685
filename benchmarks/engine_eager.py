"""MAGMA's language model in plain eager PyTorch with a cache: what a framework's cost is held to.

No more operations than the model needs, one call of torch for each; weights as torch wants them;
keys and values written in place.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.engines import Times
from config.config import MagmaConfig
from utils.random_tensors import RandomTensors

if TYPE_CHECKING:
    from collections.abc import Mapping

EPSILON = 1e-5


class Eager:
    """See :class:`benchmarks.engines.Engine`, without pictures; float32."""

    def __init__(
        self,
        config: MagmaConfig,
        tensors: Mapping[str, np.ndarray] | None = None,
        threads: int | None = None,
    ) -> None:
        """Makes the weights and an empty cache.

        Args:
            config: Sizes; the adapters must be of the kind "normal" without a norm.
            tensors: By canonical name; random ones if None.
            threads: Of torch; None for its default.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        lm = config.transformer
        source = tensors or RandomTensors(config)
        names = [name for name in source if name.startswith("lm.") and _learned(name)]
        self._w = {
            name.removeprefix("lm."): torch.tensor(source[name], dtype=torch.float32)
            for name in names
        }
        for i in range(lm.layers):
            parts = [
                self._w.pop(f"transformer.h.{i}.attn.attention.{n}_proj.weight") for n in "qkv"
            ]
            self._w[f"transformer.h.{i}.qkv"] = torch.cat(parts)
        self._config = config
        angles = _angles(config.total_tokens, lm.attention.rotary_dim)
        self._sin, self._cos = angles.sin(), angles.cos()
        shape = (lm.layers, 2, config.batch, lm.attention.heads, config.total_tokens, lm.head_size)
        self._cache = torch.zeros(shape)

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """See :class:`benchmarks.engines.Engine`."""
        if picture:
            raise ValueError("this engine has no pictures")
        start = time.perf_counter()
        self._length = 0
        self._newest = self._forward(torch.tensor(prompts))
        first_s = time.perf_counter() - start
        self._ids = [self._newest.tolist()]
        step_s = self.more(new_tokens - 1)
        return Times(first_s, 0.0, first_s, step_s, np.transpose(self._ids).tolist())

    @torch.inference_mode()
    def more(self, tokens: int) -> list[float]:
        """See :class:`benchmarks.engines.Engine`."""
        marks = [time.perf_counter()]
        for _ in range(tokens):
            self._newest = self._forward(self._newest[:, None])
            self._ids.append(self._newest.tolist())
            marks.append(time.perf_counter())
        return [b - a for a, b in pairwise(marks)]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (b, m) to the next ids (b,)."""
        m = ids.shape[1]
        x = F.embedding(ids, self._w["transformer.wte.weight"])
        now = slice(self._length, self._length + m)
        hidden = torch.ones(m, now.stop, dtype=torch.bool).tril(self._length) if m > 1 else None
        sin, cos = self._sin[now], self._cos[now]
        for i in range(self._config.transformer.layers):
            x = self._block(i, x, now, (sin, cos), hidden)
        self._length = now.stop
        x = self._norm("transformer.ln_f", x[:, -1])
        return self._linear("lm_head", x).argmax(-1)

    def _block(
        self,
        i: int,
        x: torch.Tensor,
        now: slice,
        rotation: tuple[torch.Tensor, torch.Tensor],
        visible: torch.Tensor | None,
    ) -> torch.Tensor:
        name, lm = f"transformer.h.{i}", self._config.transformer
        b, m, h = x.shape
        y = self._norm(f"{name}.ln_1", x)
        heads = F.linear(y, self._w[f"{name}.qkv"]).view(b, m, 3, lm.attention.heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        cache = self._cache[i]
        cache[0, :, :, now] = _rotate(k, *rotation)
        cache[1, :, :, now] = v
        keys, values = cache[:, :, :, : now.stop]
        attended = F.scaled_dot_product_attention(_rotate(q, *rotation), keys, values, visible)
        attended = attended.transpose(1, 2).reshape(b, m, h)
        out = F.linear(attended, self._w[f"{name}.attn.attention.out_proj.weight"])
        inner = F.gelu(self._linear(f"{name}.mlp.0.c_fc", y), approximate="tanh")
        mlp = self._linear(f"{name}.mlp.0.c_proj", inner)
        down = F.relu(self._linear(f"{name}.mlp.1.adapter.0", mlp))
        return x + out + mlp + self._linear(f"{name}.mlp.1.adapter.2", down)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._w[f"{name}.weight"], self._w[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, EPSILON)


def _learned(name: str) -> bool:
    return name.endswith(("weight", "bias")) and not name.endswith("attention.bias")


def _angles(positions: int, width: int) -> torch.Tensor:
    """(positions, width), each angle twice, for pairs of neighbouring channels."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return angles.repeat_interleave(2, dim=1).float()


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Rotary positions on the first channels of (b, n, m, d)."""
    width = sin.shape[-1]
    turned, kept = x[..., :width], x[..., width:]
    swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    return torch.cat((turned * cos + swapped * sin, kept), -1)
