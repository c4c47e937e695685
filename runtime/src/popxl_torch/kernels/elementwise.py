"""Element-wise kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from popxl_torch.kernels.registry import Site, kernel
from popxl_torch.kernels.storage import storage_dtype

UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": functools.partial(F.gelu, approximate="tanh"),
    "GeluErf": F.gelu,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Relu": torch.relu,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
    "Swish": F.silu,
    "Tanh": torch.tanh,
}


def _div(lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    if lhs.is_floating_point():
        return torch.div(lhs, rhs)
    return torch.div(lhs, rhs, rounding_mode="trunc")


def _pow(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    if base.is_floating_point():
        return torch.pow(base, exponent)
    # torch refuses negative exponents of integers.
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


def _maximum(*operands: torch.Tensor) -> torch.Tensor:
    return functools.reduce(torch.maximum, operands)


_BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": _div,
    "Equal": torch.eq,
    "Fmod": torch.fmod,
    "Greater": torch.gt,
    "Max": _maximum,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _pow,
    "Sub": torch.sub,
    "Where": torch.where,
}


def _plain(function: Callable[..., torch.Tensor]) -> Callable[[Site, int], Callable[..., Any]]:
    """A factory for functions that need neither attributes nor axes."""
    return lambda site, lead: function


for _kind, _function in UNARY.items():
    kernel(_kind)(_plain(_function))
for _kind, _function in _BINARY.items():
    kernel(_kind, broadcast=True)(_plain(_function))


@kernel("Cast", raw=True)
def _cast(site: Site, lead: int) -> Callable[..., Any]:
    dtype = storage_dtype(site.attrs["dtype"])
    bits = {"uint16": 16, "uint32": 32}.get(site.attrs["dtype"])
    if bits is None:
        return lambda x: x.to(dtype)
    # Storage is wider than the type: wrap as a conversion to the type itself would.
    return lambda x: x.to(torch.int64).bitwise_and(2**bits - 1).to(dtype)


def _is_float(dtype: str) -> bool:
    return dtype.startswith("float")


@kernel("Clip")
def _clip(site: Site, lead: int) -> Callable[..., Any]:
    low, high = site.attrs["min"], site.attrs["max"]
    if not _is_float(site.outs[0].dtype):
        # An infinite bound of an integer is none; torch would turn the result into floats.
        low = None if math.isinf(low) else int(low)
        high = None if math.isinf(high) else int(high)
        if low is None and high is None:
            return lambda x: x
    return lambda x: torch.clamp(x, low, high)


@kernel("IncrementMod")
def _increment_mod(site: Site, lead: int) -> Callable[..., Any]:
    increment, modulus = site.attrs["increment"], site.attrs["modulus"]
    if not _is_float(site.outs[0].dtype):
        increment, modulus = int(increment), int(modulus)
    return lambda x: torch.fmod(x + increment, modulus)


@kernel("ScaledAdd", broadcast=True)
def _scaled_add(site: Site, lead: int) -> Callable[..., Any]:
    """Inputs X, Y and those of the factors a and b that are no attributes."""
    numbers = {name: site.attrs[name] for name in "ab" if name in site.attrs}
    tensors = [name for name in "ab" if name not in numbers]
    is_float = _is_float(site.outs[0].dtype)

    def run(x: torch.Tensor, y: torch.Tensor, *given: torch.Tensor | None) -> torch.Tensor:
        connected = [factor for factor in given if factor is not None]
        factors = numbers | dict(zip(tensors, connected, strict=True))
        result = factors["a"] * x + factors["b"] * y
        return result if is_float else result.to(x.dtype)

    return run


@kernel("LambSquare")
def _lamb_square(site: Site, lead: int) -> Callable[..., Any]:
    return lambda x: x.float().square().flatten(lead).sum(-1)
