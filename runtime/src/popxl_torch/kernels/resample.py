"""Resizing, and sampling of regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from popxl_torch.kernels.registry import Site, kernel

_Run = Callable[..., torch.Tensor]


def _align_corners(x: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return x * ((size - 1) / (count - 1)) if count > 1 else x * 0.0


def _crop(x: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    """With the whole input as the region, as there is no other way to name one."""
    return x * ((size - 1) / (count - 1)) if count > 1 else x + 0.5 * (size - 1)


# Coordinate in an input of ``size`` that position x of ``count`` results stands for.
_COORDINATES: dict[str, Callable[[np.ndarray, int, int, float], np.ndarray]] = {
    "half_pixel": lambda x, size, count, scale: (x + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda x, size, count, scale: (
        (x + 0.5) / scale - 0.5 if count > 1 else x * 0.0
    ),
    "align_corners": _align_corners,
    "asymmetric": lambda x, size, count, scale: x / scale,
    "tf_crop_and_resize": _crop,
}
_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_CUBIC_COEFFICIENT = -0.75


def _cubic(distance: np.ndarray) -> np.ndarray:
    a, d = _CUBIC_COEFFICIENT, np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _taps(x: np.ndarray, size: int, mode: str, nearest: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input positions, weights) of each tap, for coordinates ``x``."""
    if mode == "nearest":
        taps = [(_NEAREST[nearest](x), np.ones_like(x))]
    elif mode == "linear":
        low = np.floor(x)
        taps = [(low, 1 - (x - low)), (low + 1, x - low)]
    else:
        low = np.floor(x)
        taps = [(low + k, _cubic(x - low - k)) for k in (-1, 0, 1, 2)]
    return [(np.clip(at, 0, size - 1).astype(np.int64), weight) for at, weight in taps]


def axis_taps(
    attrs: Mapping[str, Any], axis: int, size: int, count: int
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """(input positions, weights) of each tap of an axis; None if it is not resized."""
    scale = attrs["scales"][axis]
    if scale == 1.0:
        return None
    x = _COORDINATES[attrs["transformation"]](np.arange(count, dtype=float), size, count, scale)
    return _taps(x, size, attrs["mode"], attrs["nearest_mode"])


def _axis_resize(axis: int, taps: list[tuple[np.ndarray, np.ndarray]], nearest: bool) -> _Run:
    """A function that resizes one axis, counted from the end."""
    positions = [torch.from_numpy(at) for at, _ in taps]
    shape = [-1] + [1] * (-axis - 1)
    weights = [torch.from_numpy(weight.astype(np.float32)).reshape(shape) for _, weight in taps]

    def run(t: torch.Tensor) -> torch.Tensor:
        parts = [t.index_select(t.dim() + axis, at.to(t.device)) for at in positions]
        if nearest:
            return parts[0]
        weighted = (part * w.to(t.device) for part, w in zip(parts, weights, strict=True))
        return torch.stack(list(weighted)).sum(0)

    return run


@kernel("Resize", host=True)
def interpolate(site: Site, lead: int) -> _Run:
    """Resizes the axes one after the other."""
    spec, attrs = site.ins[0], site.attrs
    assert spec is not None
    resizes = []
    for axis, (size, count) in enumerate(zip(spec.shape, site.outs[0].shape, strict=True)):
        taps = axis_taps(attrs, axis, size, count)
        if taps is None:
            continue
        resizes.append(_axis_resize(axis - len(spec.shape), taps, attrs["mode"] == "nearest"))

    def run(t: torch.Tensor) -> torch.Tensor:
        for resize in resizes:
            t = resize(t)
        return t

    return run


def _samples(start: float, length: float, bins: int, ratio: int) -> torch.Tensor:
    """(bins, samples) coordinates along one axis of a region."""
    width = length / bins
    count = ratio if ratio > 0 else max(math.ceil(width), 1)
    offsets = (torch.arange(count) + 0.5) / count
    return start + (torch.arange(bins).unsqueeze(1) + offsets) * width


def _bilinear_matrix(at: torch.Tensor, size: int) -> torch.Tensor:
    """(bins, size) weights that average bilinear samples at (bins, samples) coordinates."""
    inside = ((at >= -1) & (at <= size)).float()
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    part = at - low
    result = torch.zeros(at.shape[0], size)
    share = inside / at.shape[1]
    result.scatter_add_(1, low, (1 - part) * share)
    return result.scatter_add_(1, high, part * share)


def region_matrices(
    attrs: Mapping[str, Any], roi: list[float], sizes: Sequence[int], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(bins down, height) and (bins across, width) weights of the samples in one region."""
    x1, y1, x2, y2 = (value * attrs["spatial_scale"] for value in roi)
    rows, columns = attrs["output_size"]
    down = _samples(y1, max(y2 - y1, 1.0), rows, attrs["sampling_ratio"])
    across = _samples(x1, max(x2 - x1, 1.0), columns, attrs["sampling_ratio"])
    height, width = sizes
    return _bilinear_matrix(down, height).to(like), _bilinear_matrix(across, width).to(like)


@kernel("RoiAlign", batched=False, host=True)
def roi_align(site: Site, lead: int) -> _Run:
    """Average of bilinear samples in each bin. Regions of less than one element count as one."""

    def one(image: torch.Tensor, roi: list[float]) -> torch.Tensor:
        down, across = region_matrices(site.attrs, roi, image.shape[1:], image)
        return down @ image @ across.t()

    def run(t: torch.Tensor, rois: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        pairs: Any = zip(index.tolist(), rois.tolist(), strict=True)
        results = [one(t[batch], roi) for batch, roi in pairs]
        return torch.stack(results) if results else t.new_zeros(site.outs[0].shape)

    return run
