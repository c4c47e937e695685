"""Hand-written bottleneck adapters for transformers' GPT-J."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Adapter(nn.Module):
    """E · relu(C · norm(x) + c) + e, for x of shape [..., h]."""

    def __init__(self, hidden_size: int, downsample_factor: int, layer_norm: bool):
        super().__init__()
        inner = hidden_size // downsample_factor
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5) if layer_norm else nn.Identity()
        self.down = nn.Linear(hidden_size, inner)
        self.up = nn.Linear(inner, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        return self.up(torch.relu(self.down(self.norm(x))))


class Adapted(nn.Module):
    """An MLP or an attention with an adapter: behind its finished output, or beside it."""

    def __init__(self, part: nn.Module, adapter: Adapter, kind: str):
        super().__init__()
        self.part = part
        self.adapter = adapter
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(1)) if kind == "scaled_parallel" else None

    def adapted(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What becomes of the part's output y for its input x."""
        if self.kind == "normal":
            return y + self.adapter(y)
        difference = self.adapter(x)
        return y + (difference if self.scale is None else self.scale * difference)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **options: Any) -> Any:
        """As the part's; an attention returns a tuple."""
        result = self.part(hidden_states, *args, **options)
        if isinstance(result, tuple):
            return (self.adapted(hidden_states, result[0]), *result[1:])
        return self.adapted(hidden_states, result)
