"""Conversion to and from float8, which is stored as uint8 codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.kernels.registry import Site, kernel

_FORMATS = {"float8_143": (3, 8), "float8_152": (2, 16)}
"""Mantissa bits and exponent bias."""

_NAN = 0x80
"""The code of NaN, which negative zero would have; there are no infinities."""


def _values(name: str) -> torch.Tensor:
    """(256,) float32: the number that each code stands for."""
    mantissa_bits, bias = _FORMATS[name]
    codes = torch.arange(256)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2.0**mantissa_bits
    exponent = (codes & 0x7F) >> mantissa_bits
    # Subnormals have no leading one, and the exponent of the smallest normals.
    leading = (exponent > 0).float()
    values = torch.ldexp(leading + mantissa, exponent.clamp(min=1) - bias)
    values = torch.where(codes < _NAN, values, -values)
    values[_NAN] = torch.nan
    return values


@kernel("Pow2ScaleThenCast", broadcast=True)
def _to_float8(site: Site, lead: int) -> Callable[..., Any]:
    positive = _values(site.attrs["dtype"])[:_NAN]
    halfway = (positive[:-1] + positive[1:]) / 2
    beyond = float(positive[-1] + (positive[-1] - positive[-2]) / 2)

    def run(x: torch.Tensor, log2_scale: torch.Tensor) -> torch.Tensor:
        scaled = torch.ldexp(x, log2_scale)
        size = scaled.abs().contiguous()
        edges = halfway.to(x.device)
        # At a tie the two counts of edges below differ, and the even code wins.
        low, high = torch.bucketize(size, edges), torch.bucketize(size, edges, right=True)
        codes = torch.where(low == high, low, low + (low & 1))
        codes = torch.where((scaled < 0) & (codes > 0), codes + _NAN, codes)
        return torch.where((size >= beyond) | size.isnan(), _NAN, codes).to(torch.uint8)

    return run


@kernel("CastThenPow2Scale", broadcast=True)
def _from_float8(site: Site, lead: int) -> Callable[..., Any]:
    spec = site.ins[0]
    assert spec is not None
    values = _values(spec.dtype)

    def run(codes: torch.Tensor, log2_scale: torch.Tensor) -> torch.Tensor:
        return torch.ldexp(values.to(codes.device)[codes.long()], log2_scale)

    return run
