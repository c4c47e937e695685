"""Hand-written bottleneck adapters for transformers' GPT-J."""

from __future__ import annotations

import torch
from torch import nn


class Adapter(nn.Module):
    """The ``normal`` adapter: x + E · relu(C · norm(x) + c) + e, for x of shape [..., h]."""

    def __init__(self, hidden_size: int, downsample_factor: int, layer_norm: bool):
        super().__init__()
        inner = hidden_size // downsample_factor
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5) if layer_norm else nn.Identity()
        self.down = nn.Linear(hidden_size, inner)
        self.up = nn.Linear(inner, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        return x + self.up(torch.relu(self.down(self.norm(x))))


class AdaptedMlp(nn.Module):
    """An MLP whose finished output, bias included, goes through an adapter."""

    def __init__(self, mlp: nn.Module, adapter: Adapter):
        super().__init__()
        self.mlp = mlp
        self.adapter = adapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        return self.adapter(self.mlp(x))
