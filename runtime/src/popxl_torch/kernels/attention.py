"""Attention in one step (see passes/fuse_attention.py), in float32 however q, k, v are stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from popxl_torch.kernels.registry import Site, kernel

_LOWEST = torch.finfo(torch.float32).min
"""Added to a score, it leaves nothing of it: where all keys are hidden, all weigh the same."""


@kernel("Attention", raw=True)
def attention(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """softmax(scale * q @ k^T, masked) @ v."""
    scale, meaning, rows_first = (site.attrs[key] for key in ("scale", "mask", "rows_first"))
    ranks = [len(spec.shape) for spec in site.ins if spec is not None]
    # A mask of fewer axes broadcasts behind the replica axis.
    missing = (slice(None),) * lead + (None,) * (ranks[0] - ranks[-1])

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        outer = q.shape[:-2]
        if mask is not None:
            mask = _four_axes(_added(mask[missing], meaning), outer[:-1])
        q, k, v = (_four_axes(t, outer[:-1]).float() for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        y = y.reshape(*outer, *y.shape[2:])
        return y.transpose(-2, -3) if rows_first else y

    return run


def _added(mask: torch.Tensor, meaning: str) -> torch.Tensor:
    """What a mask adds to scores."""
    if meaning == "added":
        return mask.float()
    seen, hidden = (0.0, _LOWEST) if meaning == "visible" else (_LOWEST, 0.0)
    return torch.where(mask, seen, hidden)


def _four_axes(t: torch.Tensor, outer: tuple[int, ...]) -> torch.Tensor:
    """(*outer, n, m, d), the outer axes maybe 1, as (b, n, m, d)."""
    if t.dim() == 4:
        return t
    if t.dim() < 4:
        return t[(None,) * (4 - t.dim())]
    return t.expand(*outer, -1, -1, -1).flatten(0, -4)
