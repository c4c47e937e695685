"""Random numbers as a function of seed and position: no state, the same on every device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from popxl_torch.ir.records import Spec
from popxl_torch.kernels.registry import Site, kernel

_Run = Callable[..., torch.Tensor]

# SplitMix64's increment and multipliers, as signed 64-bit numbers: products wrap.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_FRACTION_BITS = 24  # of a float32 in [0, 1)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """A bijection of 64-bit numbers that looks random."""
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _key(seed: torch.Tensor) -> torch.Tensor:
    """(..., 2) halves of 32 bits, high first -> (...) numbers of 64 bits."""
    return _mixed((seed[..., 0] << 32) | seed[..., 1])


def draws(seed: torch.Tensor, count: int) -> torch.Tensor:
    """(..., 2) seeds -> (..., count) random 64-bit numbers."""
    position = torch.arange(1, count + 1, device=seed.device)
    return _mixed(_key(seed).unsqueeze(-1) + position * _GOLDEN)


def uniform(seed: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Float32 numbers in [0, 1) of shape (..., \\*spec.shape)."""
    bits = _shifted(draws(seed, spec.nelms), 64 - _FRACTION_BITS)
    return (bits.float() * 2.0**-_FRACTION_BITS).reshape((*seed.shape[:-1], *spec.shape))


def normal(seed: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Standard normal float32 numbers of shape (..., \\*spec.shape), by Box and Muller."""
    z = draws(seed, spec.nelms)
    radius = (_shifted(z, 64 - _FRACTION_BITS) + 1).float() * 2.0**-_FRACTION_BITS  # in (0, 1]
    angle = (z & ((1 << _FRACTION_BITS) - 1)).float() * (2 * math.pi * 2.0**-_FRACTION_BITS)
    result = torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)
    return result.reshape((*seed.shape[:-1], *spec.shape))


@kernel("RandomUniform")
def random_uniform(site: Site, lead: int) -> _Run:
    """Uniform numbers in [low, high)."""
    low, high, spec = site.attrs["low"], site.attrs["high"], site.outs[0]
    return lambda seed: uniform(seed, spec) * (high - low) + low


@kernel("RandomNormal")
def random_normal(site: Site, lead: int) -> _Run:
    """Normal numbers."""
    mean, std, spec = site.attrs["mean"], site.attrs["std"], site.outs[0]
    return lambda seed: normal(seed, spec) * std + mean


@kernel("ModifyRandomSeed")
def modify_random_seed(site: Site, lead: int) -> _Run:
    """A seed for each modifier; different modifiers give different seeds."""

    def run(seed: torch.Tensor, modifier: torch.Tensor) -> torch.Tensor:
        z = _mixed(_key(seed) + (modifier.reshape(seed.shape[:-1]).long() + 1) * _GOLDEN)
        return torch.stack([_shifted(z, 32), z & 0xFFFFFFFF], -1)

    return run


def _dropped(t: torch.Tensor, drawn: torch.Tensor, ratio: float) -> torch.Tensor:
    scale = 1 / (1 - ratio) if ratio < 1 else 0.0
    return torch.where(drawn >= ratio, t * scale, torch.zeros_like(t))


@kernel("Dropout")
def dropout(site: Site, lead: int) -> _Run:
    """Zeros with the given probability, the rest scaled up."""
    spec, ratio = site.outs[0], site.attrs["ratio"]
    return lambda t, seed: _dropped(t, uniform(seed, spec), ratio)


@kernel("ShapedDropout")
def shaped_dropout(site: Site, lead: int) -> _Run:
    """Dropout with a mask of its own shape."""
    shape, ratio = site.attrs["shape"], site.attrs["ratio"]
    padded = (1,) * (len(site.outs[0].shape) - len(shape)) + tuple(shape)
    spec = Spec(padded, "float32")
    return lambda t, seed: _dropped(t, uniform(seed, spec), ratio)
