"""Convolution, pooling and normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.records import Spec
from popxl_torch.ir.windows import transposed_windows, window_pads
from popxl_torch.kernels.float8 import FLOAT8, scaled_product
from popxl_torch.kernels.registry import Site, kernel

_Run = Callable[..., Any]

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, _Run] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_AVERAGE: dict[int, _Run] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _specs(site: Site) -> list[Spec]:
    return [spec for spec in site.ins if spec is not None]


def _by_rank(table: dict[int, _Run], rank: int, site: Site) -> _Run:
    if rank not in table:
        raise popart_exception(f"{site.where}: {rank} spatial axes; 1 to 3 are supported")
    return table[rank]


def operands(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One dtype for both: the narrower on GPUs; never half on CPUs, where it is slow and rounds."""
    if x.is_cuda:
        narrow = x.dtype if x.element_size() < w.element_size() else w.dtype
        return x.to(narrow), w.to(narrow)
    wide = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
    return x.to(wide), w.to(wide)


def flat_pads(pads: list[tuple[int, int]]) -> list[int]:
    """(begin, end) per axis in the order of functional.pad: last axis first."""
    return [size for pair in reversed(pads) for size in pair]


@kernel("Conv", batched=False, raw=True)
def conv(site: Site, lead: int) -> _Run:
    """Convolution; uneven padding is added first."""
    t, weight = _specs(site)[:2]
    attrs, rank = site.attrs, len(t.shape) - 2
    convolve = _by_rank(_CONV, rank, site)
    pads = window_pads(t.shape[2:], site.outs[0].shape[2:], weight.shape[2:], attrs)
    begins, ends = zip(*pads, strict=True)
    # The library's own padding may be longer at the end than the last window needs.
    own = attrs["pad_type"] == "not_set" and attrs["pads"][:rank] == attrs["pads"][rank:]
    own = own or begins == ends
    padding = begins if own else (0,) * rank
    outer = None if own else flat_pads(pads)

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x, w = operands(x, w)
        if outer is not None:
            x = functional.pad(x, outer)
        return convolve(x, w, None, attrs["strides"], padding, attrs["dilations"], attrs["groups"])

    return scaled_product(site, run) if t.dtype in FLOAT8 else run


@kernel("ConvTranspose", batched=False, raw=True)
def conv_transpose(site: Site, lead: int) -> _Run:
    """Transposed convolution without padding, then cut (or filled with zeros) to its size."""
    t, weight = _specs(site)[:2]
    attrs, rank = site.attrs, len(t.shape) - 2
    convolve = _by_rank(_CONV_TRANSPOSE, rank, site)
    sizes, begins = transposed_windows(t.shape[2:], weight.shape[2:], attrs)
    full = [
        s * (n - 1) + k
        for s, n, k in zip(attrs["strides"], t.shape[2:], weight.shape[2:], strict=True)
    ]
    cut = [(-b, n + b - f) for b, n, f in zip(begins, sizes, full, strict=True)]

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x, w = operands(x, w)
        y = convolve(x, w, None, attrs["strides"], 0, 0, attrs["groups"], 1)
        return functional.pad(y, flat_pads(cut))

    return scaled_product(site, run) if t.dtype in FLOAT8 else run


def _windows(x: torch.Tensor, site: Site) -> torch.Tensor:
    """(N, C, *windows, *kernel) view of a padded input."""
    for axis, k in enumerate(site.attrs["kernel_size"]):
        dilation = site.attrs["dilations"][axis]
        x = x.unfold(axis + 2, dilation * (k - 1) + 1, site.attrs["strides"][axis])
        x = x[..., ::dilation]
    return x


def _spread(x: torch.Tensor, factors: tuple[int, ...], fill: float) -> torch.Tensor:
    """``fill`` between the elements of the spatial axes."""
    if all(factor == 1 for factor in factors):
        return x
    sizes = [f * (n - 1) + 1 for n, f in zip(x.shape[2:], factors, strict=True)]
    result = x.new_full((*x.shape[:2], *sizes), fill)
    every: tuple[Any, ...] = tuple(slice(None, None, factor) for factor in factors)
    result[(..., *every)] = x
    return result


def _pool_layout(site: Site) -> tuple[int, list[tuple[int, int]], list[int]]:
    """Spatial rank, (begin, end) padding of the spread input, and pads around the result."""
    (t,) = _specs(site)
    attrs, rank = site.attrs, len(t.shape) - 2
    out_pads = attrs["out_pads"]
    sizes = [n - out_pads[i] - out_pads[rank + i] for i, n in enumerate(site.outs[0].shape[2:])]
    spread = [d * (n - 1) + 1 for n, d in zip(t.shape[2:], attrs["in_dilations"], strict=True)]
    pads = window_pads(spread, sizes, attrs["kernel_size"], attrs)
    around = flat_pads([(out_pads[i], out_pads[rank + i]) for i in range(rank)])
    return rank, pads, around


def _is_plain(site: Site, pads: list[tuple[int, int]], around: list[int]) -> bool:
    """Whether torch's own pooling has the same meaning: no padding and nothing spread."""
    attrs = site.attrs
    ones = [*attrs["dilations"], *attrs["in_dilations"]]
    padded = any(begin or end > 0 for begin, end in pads)
    return not padded and not any(around) and all(one == 1 for one in ones)


@kernel("AveragePool", batched=False)
def average_pool(site: Site, lead: int) -> _Run:
    """Mean over windows, without what was padded or spread in."""
    rank, pads, around = _pool_layout(site)
    attrs = site.attrs
    if rank in _AVERAGE and _is_plain(site, pads, around):
        pool = _AVERAGE[rank]
        return lambda x: pool(x, attrs["kernel_size"], attrs["strides"])
    inner = tuple(range(-rank, 0))

    def run(x: torch.Tensor) -> torch.Tensor:
        present = _spread(torch.ones_like(x[:1, :1]), attrs["in_dilations"], 0.0)
        x = _spread(x, attrs["in_dilations"], 0.0)
        total = _windows(functional.pad(x, flat_pads(pads)), site).sum(inner)
        count = _windows(functional.pad(present, flat_pads(pads)), site).sum(inner)
        return functional.pad(total / count.clamp(min=1), around)

    return run


@kernel("MaxPool", batched=False)
def max_pool(site: Site, lead: int) -> _Run:
    """Maximum over windows, without what was padded or spread in."""
    rank, pads, around = _pool_layout(site)
    attrs = site.attrs
    if rank in _MAX and _is_plain(site, pads, around):
        pool = _MAX[rank]
        return lambda x: pool(x, attrs["kernel_size"], attrs["strides"])
    inner = tuple(range(-rank, 0))
    low = float("-inf")

    def run(x: torch.Tensor) -> torch.Tensor:
        x = _spread(x, attrs["in_dilations"], low)
        windows = _windows(functional.pad(x, flat_pads(pads), value=low), site)
        return functional.pad(windows.amax(inner), around)

    return run


@kernel("BatchNormalization", raw=True)
def batch_norm(site: Site, lead: int) -> _Run:
    """One multiply and one add per element; scale and shift are computed in at least float32."""
    rank = len(_specs(site)[0].shape)
    eps = site.attrs["eps"]

    def channels(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(*t.shape[:lead], 1, t.shape[-1], *[1] * (rank - 2))

    def run(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale, bias, mean, var = (param.to(wide) for param in params)
        scale = scale / torch.sqrt(var + eps)
        return torch.addcmul(channels(bias - mean * scale), x.to(wide), channels(scale))

    return run


@kernel("GroupNormalization")
def group_norm(site: Site, lead: int) -> _Run:
    """(result, means, inverse standard deviations)."""
    t, weight, bias = _specs(site)
    rows, channels = t.shape[0] * site.attrs["num_groups"], t.shape[1]
    shapes = {weight.shape, bias.shape}
    if channels % site.attrs["num_groups"] or shapes != {(channels,)}:
        raise popart_exception(
            f"{site.where}: {site.attrs['num_groups']} groups of input {t} with weight {weight} and"
            f" bias {bias}: expected shape ({channels},), and groups that divide it"
        )
    size, eps = t.nelms // rows, site.attrs["eps"]
    fused = lead == 0 and len(t.shape) == 2 and site.attrs["num_groups"] == 1
    affine = (1, channels, *[1] * (len(t.shape) - 2))

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ends = x.shape[:lead]
        x = x.reshape(*ends, rows, size)
        if fused:
            y, mean, inverse = torch.native_layer_norm(x, (size,), w.to(x), b.to(x), eps)
        else:
            y, mean, inverse = torch.native_layer_norm(x, (size,), None, None, eps)
            y = y.reshape(*ends, *t.shape)
            y = torch.addcmul(b.reshape(*ends, *affine), y, w.reshape(*ends, *affine))
        return y, mean.reshape(*ends, rows), inverse.reshape(*ends, rows)

    return run
