"""Kernels of the op kinds that popxl_addons declares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.registry import Site, kernel

_Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _rotation(width: int, halves: bool) -> _Rotate:
    """A function of x (..., d), sin and cos, both (..., width / 2), that rotates pairs of the first
    ``width`` channels; they are halves apart or neighbours."""

    def apart(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        x1, x2 = x[..., : width // 2], x[..., width // 2 : width]
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, x[..., width:]), -1)

    def neighbours(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        turned = x[..., :width].unflatten(-1, (-1, 2))
        if turned.stride(-1) != 1 or any(n % 2 for n in _places(turned)):
            turned = turned.contiguous()
        y = torch.view_as_complex(turned) * torch.complex(cos, sin)
        y = torch.view_as_real(y).flatten(-2)
        return y if width == x.shape[-1] else torch.cat((y, x[..., width:]), -1)

    return apart if halves else neighbours


def _places(t: torch.Tensor) -> tuple[int, ...]:
    """Offset and strides but the last: even ones where pairs of numbers are complex ones."""
    return (int(t.storage_offset()), *t.stride()[:-1])


def _over_heads(table: torch.Tensor, lead: int) -> torch.Tensor:
    """A table, (seq, dim) or (1 or batch, seq, dim), as (1 or batch, seq, 1, dim)."""
    table = table if table.dim() - lead == 3 else table.unsqueeze(lead)
    return table.unsqueeze(-2)


@kernel("RotaryPosEmbed")
def _rotary_pos_embed(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    turn = _rotation(site.attrs["rotary_dim"], site.attrs["halves"])
    return lambda x, sin, cos: turn(x, _over_heads(sin, lead), _over_heads(cos, lead))


@kernel("RotarySplit")
def _rotary_split(site: Site, lead: int) -> Callable[..., list[torch.Tensor]]:
    """Parts of the last axis, neighbouring ones of one size rotated (see passes/fuse_rotary.py)."""
    turn = _rotation(site.attrs["rotary_dim"], site.attrs["halves"])
    sizes, (first, count) = site.attrs["sizes"], site.attrs["rotated"]
    start, size = sum(sizes[:first]), sizes[first]

    def run(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> list[torch.Tensor]:
        parts = list(torch.split(x, sizes, -1))
        together = x.narrow(-1, start, count * size).unflatten(-1, (count, size))
        sin, cos = (_over_heads(table, lead).unsqueeze(-2) for table in (sin, cos))
        parts[first : first + count] = turn(together, sin, cos).unbind(-2)
        return parts

    return run


@kernel("CrossEntropySharded", raw=True)
def _cross_entropy_sharded(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The loss, which is computed; the other inputs are for its gradient."""
    return lambda loss, *others: loss


@kernel("Fp8MseScale", batched=False)
def _fp8_mse_scale(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The scale whose summed error over a histogram of binary exponents is least."""
    attrs = site.attrs
    powers = torch.ldexp(
        torch.ones(attrs["count"], dtype=torch.float64),
        torch.arange(attrs["count"]) + attrs["min_exp"],
    )
    bins = torch.arange(attrs["count"])
    trials = 2 * attrs["max_scale"]
    # With trial i, what lies in the bins low[i] to high[i] is in range.
    low = attrs["first"] - attrs["max_scale"] + torch.arange(trials)[:, None]
    high = low + attrs["span"]
    over = (powers[high - 1] - powers) ** 2
    inside = torch.where(bins < high, powers**2 * attrs["error"], over)
    costs = torch.where(bins < low, powers**2, inside)
    costs[:, 0] = 0
    source = torch.float16 if site.ins[0] and site.ins[0].dtype == "float16" else torch.float32
    edges = powers.to(source).to(torch.float32)

    def run(x: torch.Tensor) -> torch.Tensor:
        found = torch.bucketize(x.abs().flatten(), edges, right=True)
        counts = torch.bincount(found, minlength=len(powers) + 1)[1:]
        errors = (costs * counts).sum(1)
        best = errors == errors.min()
        return attrs["max_scale"] - best.to(torch.int32).argmax() - best.sum() // 2

    return run
