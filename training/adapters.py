"""Adapters: small trained networks beside or behind the parts of a frozen block.

The inner network A is [layer norm] → Linear(h, inner) → ReLU → Linear(inner, h). With f a part of
the block (its MLP, or its attention with the output projection) and x the part's input:

- ``normal``: f(x) + A(f(x))
- ``parallel``: f(x) + A(x)
- ``scaled_parallel``: f(x) + g · A(x), g a learned number that begins at 1

The modules are nested so that their parameters get the names of MAGMA's checkpoints
(`utils.checkpoint_layout`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from utils.checkpoint_layout import AdapterSpec

INITIAL_SPREAD = 1e-3
"""Standard deviation of fresh weights and biases, cut at twice that: almost the identity."""


def _inner_network(hidden: int, spec: AdapterSpec) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LayerNorm(hidden, eps=1e-5)] if spec.layer_norm else []
    for linear in (nn.Linear(hidden, spec.inner), nn.Linear(spec.inner, hidden)):
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=INITIAL_SPREAD)
            parameter.data.clamp_(-2 * INITIAL_SPREAD, 2 * INITIAL_SPREAD)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Adapter(nn.Module):
    """The ``normal`` adapter by itself: y + A(y), for y of shape [..., h]."""

    def __init__(self, hidden: int, spec: AdapterSpec) -> None:
        """A fresh adapter."""
        super().__init__()
        self.adapter = _inner_network(hidden, spec)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Same shape as y."""
        return y + self.adapter(y)


class NormalAttention(Adapter):
    """An attention whose output goes through an adapter."""

    def __init__(self, attention: nn.Module, hidden: int, spec: AdapterSpec) -> None:
        """Wraps transformers' attention."""
        super().__init__(hidden, spec)
        self.attn_block = attention

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> tuple[Any, ...]:  # type: ignore[override]
        """Called and answering as the attention itself: [b, s, h] first, the rest untouched."""
        output, *rest = self.attn_block(hidden_states=hidden_states, **options)
        return (super().forward(output), *rest)


class Parallel(nn.Module):
    """A part of a block with an adapter beside it."""

    def __init__(self, module: nn.Module, hidden: int, spec: AdapterSpec) -> None:
        """Wraps transformers' MLP or attention."""
        super().__init__()
        self.module = module
        self.adapter = _inner_network(hidden, spec)
        if spec.kind == "scaled_parallel":
            self.adapter_scale = nn.Parameter(torch.ones(1))

    def _beside(self, x: torch.Tensor) -> torch.Tensor:
        return self.adapter(x) * getattr(self, "adapter_scale", 1)


class ParallelMlp(Parallel):
    """An MLP with an adapter beside it: [..., h] -> [..., h]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        return self.module(x) + self._beside(x)


class ParallelAttention(Parallel):
    """An attention with an adapter beside it."""

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> tuple[Any, ...]:
        """Called and answering as the attention itself: [b, s, h] first, the rest untouched."""
        output, *rest = self.module(hidden_states=hidden_states, **options)
        return (output + self._beside(hidden_states), *rest)


def adapt_mlp(mlp: nn.Module, hidden: int, spec: AdapterSpec | None) -> nn.Module:
    """An MLP with the adapter that ``spec`` describes, or the MLP itself for None."""
    if spec is None:
        return mlp
    if spec.kind == "normal":
        return nn.Sequential(mlp, Adapter(hidden, spec))
    return ParallelMlp(mlp, hidden, spec)


def adapt_attention(attention: nn.Module, hidden: int, spec: AdapterSpec | None) -> nn.Module:
    """An attention with the adapter that ``spec`` describes, or the attention itself for None."""
    if spec is None:
        return attention
    wrapper = NormalAttention if spec.kind == "normal" else ParallelAttention
    return wrapper(attention, hidden, spec)
