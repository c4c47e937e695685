"""Kernels of the op kinds that popxl_addons declares."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.registry import Site, kernel


@kernel("CrossEntropySharded", raw=True)
def _cross_entropy_sharded(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The loss, which is computed; the other inputs are for its gradient."""
    return lambda loss, *others: loss


@kernel("Fp8MseScale", batched=False, host=True)
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
