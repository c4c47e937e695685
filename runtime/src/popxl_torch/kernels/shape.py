"""Kernels that only move elements. Results are views of the inputs wherever torch can make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.ir.errors import popart_exception
from popxl_torch.kernels.registry import Site, kernel


@kernel("Reshape")
def _reshape(site: Site, lead: int) -> Callable[..., Any]:
    shape = tuple(site.attrs["shape"])
    if lead:
        return lambda x: x.reshape((x.shape[0], *shape))
    return lambda x: x.reshape(shape)


@kernel("Transpose")
def _transpose(site: Site, lead: int) -> Callable[..., Any]:
    perm = (*range(lead), *(axis + lead for axis in site.attrs["perm"]))
    return lambda x: x.permute(perm)


@kernel("Slice")
def _slice(site: Site, lead: int) -> Callable[..., Any]:
    ranges = list(zip(*(site.attrs[key] for key in ("starts", "stops", "steps")), strict=True))
    if any(abs(step) != 1 for _, _, step in ranges):
        raise popart_exception(f"slice steps must be 1 or -1, use subsample: {site.where}")
    (spec,) = site.ins
    assert spec is not None
    narrow, flip = [], []
    for axis, ((start, stop, step), size) in enumerate(zip(ranges, spec.shape, strict=True)):
        length = len(range(start, stop, step))
        first = start if step > 0 else start - length + 1
        if length != size:
            narrow.append((axis + lead, first if length else 0, length))
        if step < 0:
            flip.append(axis + lead)

    def run(x: torch.Tensor) -> torch.Tensor:
        for axis, first, length in narrow:
            x = x.narrow(axis, first, length)
        return x.flip(flip) if flip else x

    return run


@kernel("Subsample")
def _subsample(site: Site, lead: int) -> Callable[..., Any]:
    key = (slice(None),) * lead + tuple(slice(None, None, step) for step in site.attrs["strides"])
    return lambda x: x[key]


@kernel("Concat")
def _concat(site: Site, lead: int) -> Callable[..., Any]:
    axis = site.attrs["axis"] + lead
    return lambda *parts: torch.cat(parts, axis)


@kernel("Split")
def _split(site: Site, lead: int) -> Callable[..., Any]:
    axis, sizes = site.attrs["axis"] + lead, list(site.attrs["sizes"])
    if len(sizes) == 1:
        return lambda x: x
    return lambda x: torch.split(x, sizes, axis)


@kernel("Identity", "Detach", "IpuCopy", "IoTileCopy")
def _same(site: Site, lead: int) -> Callable[..., Any]:
    return lambda x: x
