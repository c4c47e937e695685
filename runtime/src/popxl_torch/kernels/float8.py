"""Conversion to and from float8, which is stored as uint8 codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.ir.errors import poplar_application_runtime_error
from popxl_torch.kernels.registry import Site, kernel

FLOAT8 = {"float8_143": (3, 8), "float8_152": (2, 16)}
"""Mantissa bits and exponent bias."""

_NAN = 0x80
"""The code of NaN, which negative zero would have; there are no infinities."""


def code_values(name: str) -> torch.Tensor:
    """(256,) float32: the number that each code stands for."""
    mantissa_bits, bias = FLOAT8[name]
    codes = torch.arange(256)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2.0**mantissa_bits
    exponent = (codes & 0x7F) >> mantissa_bits
    # Subnormals have no leading one, and the exponent of the smallest normals.
    leading = (exponent > 0).float()
    values = torch.ldexp(leading + mantissa, exponent.clamp(min=1) - bias)
    values = torch.where(codes < _NAN, values, -values)
    values[_NAN] = torch.nan
    return values


def scaled_product(site: Site, product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``product`` of two float8 operands, in float32, times 2 to the power of the third input.

    Raises:
        poplar_application_runtime_error: when it runs, for a scale outside [-32, 32).
    """
    tables = [code_values(spec.dtype) for spec in site.ins[:2] if spec is not None]
    check = site.attrs["check_scale"]

    def run(x: torch.Tensor, w: torch.Tensor, log2_scale: torch.Tensor) -> torch.Tensor:
        if check and not torch.all((log2_scale >= -32) & (log2_scale < 32)):
            raise poplar_application_runtime_error(
                f"{site.where}: log2_scale must lie in [-32, 32), not {log2_scale.tolist()}"
            )
        x, w = (
            table.to(codes.device)[codes.long()]
            for table, codes in zip(tables, (x, w), strict=True)
        )
        y = product(x, w)
        ones = [1] * len(site.outs[0].shape)
        return torch.ldexp(y, log2_scale.reshape((*log2_scale.shape, *ones)))

    return run


@kernel("Pow2ScaleThenCast", broadcast=True)
def _to_float8(site: Site, lead: int) -> Callable[..., Any]:
    positive = code_values(site.attrs["dtype"])[:_NAN]
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
    values = code_values(spec.dtype)

    def run(codes: torch.Tensor, log2_scale: torch.Tensor) -> torch.Tensor:
        return torch.ldexp(values.to(codes.device)[codes.long()], log2_scale)

    return run
