"""Kernels of the op kinds that popxl_addons declares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.registry import Site, kernel


@kernel("RotaryPosEmbed")
def _rotary_pos_embed(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    rotary_dim = site.attrs["rotary_dim"]

    def over_heads(table: torch.Tensor) -> torch.Tensor:
        # (seq, dim) or (1 or batch, seq, dim), to broadcast over batch and heads.
        table = table if table.dim() - lead == 3 else table.unsqueeze(lead)
        return table.unsqueeze(-2)

    def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        sin, cos = over_heads(sin), over_heads(cos)
        even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
        out = x.clone(memory_format=torch.contiguous_format)
        out[..., 0:rotary_dim:2] = even * cos - odd * sin
        out[..., 1:rotary_dim:2] = odd * cos + even * sin
        return out

    return rotate
