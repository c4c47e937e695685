"""Kernels of the op kinds that popxl_addons declares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.registry import Site, kernel


@kernel("RotaryPosEmbed")
def _rotary_pos_embed(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    rotary_dim, half = site.attrs["rotary_dim"], site.attrs["rotary_dim"] // 2
    # Where the first and the second elements of the pairs are.
    if site.attrs["halves"]:
        first, second = slice(half), slice(half, rotary_dim)
    else:
        first, second = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)

    def over_heads(table: torch.Tensor) -> torch.Tensor:
        # (seq, dim) or (1 or batch, seq, dim), to broadcast over batch and heads.
        table = table if table.dim() - lead == 3 else table.unsqueeze(lead)
        return table.unsqueeze(-2)

    def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        sin, cos = over_heads(sin), over_heads(cos)
        x1, x2 = x[..., first], x[..., second]
        out = x.clone(memory_format=torch.contiguous_format)
        out[..., first] = x1 * cos - x2 * sin
        out[..., second] = x2 * cos + x1 * sin
        return out

    return rotate


@kernel("CrossEntropySharded", raw=True)
def _cross_entropy_sharded(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The loss, which is computed; the other inputs are for its gradient."""
    return lambda loss, *others: loss
