"""Attention in one step (see passes/fuse_attention.py), in float32 however q, k, v are stored.

Few queries, as a decode step has, are C++'s: it reads keys and values as they are stored, once for
each. Without it, and for many queries, torch does the work.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from popxl_torch.kernels.linalg import scratch
from popxl_torch.kernels.native import ATTENDED, MASKS, SERIAL_BELOW, Attention, native
from popxl_torch.kernels.registry import Site, kernel

FEW_QUERIES = 8
"""Queries up to which C++ is used: it reads keys and values, maybe from a cache, for each. Without
it, keys and values in less than float32 are widened in pieces for so few."""

PIECE = 1 << 18
"""Elements of keys or values in less than float32 that torch widens at once: as float32 they fit
into a second-level cache."""

MANY = 1 << 22
"""Elements of keys, values and masks that many queries widen at once, or those of one head."""

MANY_ON_GPU = 1 << 24
"""The same on a GPU, which is better off with few calls: as float32 they take 64 MiB."""

_LOWEST = torch.finfo(torch.float32).min
"""Added to a score, it leaves nothing of it: where all keys are hidden, all weigh the same."""

_OUTER = 3
"""Axes in front of queries and channels that the C++ kernel knows."""

_Run = Callable[..., torch.Tensor]
_Mask = Callable[[slice], torch.Tensor] | None
"""What is added to the scores of some sequences."""


@kernel("Attention", raw=True)
def attention(site: Site, lead: int) -> _Run:
    """softmax(scale * q @ k^T, masked) @ v."""
    shapes = [spec.shape for spec in site.ins if spec is not None]
    rank = len(shapes[0])
    is_masked = site.attrs["mask"] is not None
    # A mask of fewer axes broadcasts behind the replica axis.
    axes_of_mask = len(shapes[3]) if is_masked else rank
    missing = (slice(None),) * lead + (None,) * (rank - axes_of_mask)
    few = shapes[0][-2] <= FEW_QUERIES
    by_torch = _by_torch(site, missing, _few if few else _many)
    by_library = _ByLibrary(site, missing) if few and rank + lead <= _OUTER + 2 else None

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        mask, scales = (rest[0], rest[1:]) if is_masked else (None, rest)
        y = None if by_library is None else by_library(q, k, v, mask, *scales)
        return by_torch(q, k, v, mask, *scales) if y is None else y

    return run


def _by_torch(site: Site, missing: tuple[Any, ...], attend: _Run) -> _Run:
    """``attend`` of tensors with four axes, whose mask is added to scores."""
    scale, meaning, rows_first = (site.attrs[key] for key in ("scale", "mask", "rows_first"))

    def run(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        *scales: torch.Tensor,
    ) -> torch.Tensor:
        outer = q.shape[:-2]
        q, *others = (_four_axes(t, outer[:-1]) for t in (q, k, v, *scales))
        added: _Mask = None
        if mask is not None:
            shown = _four_axes(mask[missing], outer[:-1]).expand(q.shape[0], -1, -1, -1)
            added = partial(_added, shown, meaning)
        y = attend(q.float(), others[0], others[1], added, scale, *others[2:])
        y = y.reshape(*outer, *y.shape[2:])
        return y.transpose(-2, -3) if rows_first else y

    return run


def _many(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: _Mask,
    scale: float,
    *scales: torch.Tensor,
) -> torch.Tensor:
    """A few heads of a few sequences at a time, so that little is widened at once."""
    (b, n, m, _), (t, e) = q.shape, v.shape[-2:]
    many = MANY if q.device.type == "cpu" else MANY_ON_GPU
    heads = min(n, max(1, many // (t * (k.shape[-1] + e))))
    rows = max(1, many // (n * t * (k.shape[-1] + e) + m * t)) if heads == n else 1

    def attend(part: tuple[slice, slice], seen: torch.Tensor | None) -> torch.Tensor:
        keys, values = (x[part].float() for x in (k, v))
        if scales:
            keys, values = keys * scales[0][part], values * scales[1][part]
        shown = seen if seen is None or seen.shape[1] == 1 else seen[:, part[1]]
        return F.scaled_dot_product_attention(q[part], keys, values, attn_mask=shown, scale=scale)

    def seen_by(mine: slice) -> torch.Tensor | None:
        return None if mask is None else mask(mine)

    if heads == n and rows >= b:  # one part, whose result needs no copy
        return attend((slice(0, b), slice(0, n)), seen_by(slice(0, b)))
    y = q.new_empty(b, n, m, e)
    for row in range(0, b, rows):
        mine = slice(row, row + rows)
        seen = seen_by(mine)
        for head in range(0, n, heads):
            part = mine, slice(head, head + heads)
            y[part] = attend(part, seen)
    return y


def _few(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: _Mask,
    scale: float,
    *scales: torch.Tensor,
) -> torch.Tensor:
    if k.dtype == torch.float32 or k.is_cuda:
        return _many(q, k, v, mask, scale, *scales)
    b, n, m, _ = q.shape
    scores = _product(q.flatten(0, 1) * scale, k.flatten(0, 1).mT).view(b, n, m, -1)
    if scales:
        scores = scores * scales[0].mT
    weights = torch.softmax(scores if mask is None else scores + mask(slice(None)), -1)
    if scales:
        weights = weights * scales[1].mT
    return _product(weights.flatten(0, 1), v.flatten(0, 1)).view(b, n, m, -1)


def _product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (b, m, k) float32 times w (b, k, n) of fewer bits, of which a piece is widened at a time
    into memory that is kept."""
    b, k, n = w.shape
    y = x.new_empty(b, x.shape[1], n)
    step = max(1, PIECE // (k * n))
    columns_first = w.stride(1) == 1  # widened as it is stored
    for start in range(0, b, step):
        part = w[start : start + step]
        wide = scratch(part.numel(), x.device)[: part.numel()]
        wide = wide.view(-1, n, k).mT if columns_first else wide.view(-1, k, n)
        torch.bmm(x[start : start + step], wide.copy_(part), out=y[start : start + step])
    return y


def _added(mask: torch.Tensor, meaning: str, rows: slice) -> torch.Tensor:
    """What a mask adds to the scores of some sequences."""
    mask = mask[rows]
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


# -- few queries, in C++ --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """What strides come to: the function and its description, result, floats of scratch memory."""

    attend: Callable[..., None]
    index: int
    described: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    room: int


class _ByLibrary:
    """The C++ kernel at one place of a program, where shapes are always the same."""

    def __init__(self, site: Site, missing: tuple[Any, ...]) -> None:
        self.attrs, self.missing = site.attrs, missing
        self.layouts: dict[Any, _Layout | None] = {}

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        *scales: torch.Tensor,
    ) -> torch.Tensor | None:
        """The result; None if the library is not there or does not read such tensors."""
        if q.dtype != torch.float32:
            q = q.float()
        if mask is not None and mask.dtype == torch.float16:
            mask = mask.float()
        seen = None if mask is None else mask.stride()
        key: tuple[Any, ...] = (q.stride(), k.stride(), v.stride(), seen, k.dtype, v.dtype)
        key += tuple(t.stride() for t in scales)
        if key not in self.layouts:
            self.layouts[key] = self._layout(q, k, v, mask, *scales)
        layout = self.layouts[key]
        if layout is None:
            return None
        y = torch.empty_strided(layout.shape, layout.strides)
        layout.attend(
            layout.index,
            layout.described,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            None if mask is None else mask.data_ptr(),
            *([t.data_ptr() for t in scales] or (None, None)),
            y.data_ptr(),
            scratch(layout.room, y.device).data_ptr(),
        )
        return y

    def _layout(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        *scales: torch.Tensor,
    ) -> _Layout | None:
        library, attrs = native(), self.attrs
        if library is None or not _is_read(q, k, v, *scales):
            return None
        outer, m = q.shape[:-2], q.shape[-2]
        t, d, e = k.shape[-2], k.shape[-1], v.shape[-1]
        y = _laid_out_by_rows(outer, m, e)
        rows = (q, k, v, y, *(scales or (y, y)))
        strides = [stride for tensor in rows for stride in _strides(tensor)[:-1]]
        shown = torch.empty(()) if mask is None else mask[self.missing]
        strides += _strides(shown.expand(*outer, m, t))
        sizes = [1] * (_OUTER - len(outer)) + [*outer, m, t, d, e]
        small = math.prod(outer) * m * t * d < SERIAL_BELOW
        threads = 1 if small else torch.get_num_threads()
        described = Attention(
            (ctypes.c_int64 * len(sizes))(*sizes),
            (ctypes.c_int64 * len(strides))(*strides),
            ATTENDED[k.dtype],
            MASKS[attrs["mask"]],
            attrs["scale"],
            attrs["fill"],
            threads,
            library.fork,
        )
        if attrs["rows_first"]:
            y = y.transpose(-2, -3)
        room = threads * library.functions["room"](library.index, d, t)
        attend = library.functions["attend"]
        shape = tuple(y.shape), tuple(y.stride())
        return _Layout(attend, library.index, ctypes.byref(described), *shape, room)


def _is_read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *scales: torch.Tensor) -> bool:
    if any(t.stride(-1) != 1 for t in (q, k, v)) or q.is_cuda:
        return False
    single = all(t.dtype == torch.float32 for t in (q, *scales))
    return single and k.dtype == v.dtype in ATTENDED


def _strides(t: torch.Tensor) -> list[int]:
    """Strides with zeros for outer axes that are not there."""
    return [0] * (_OUTER + 2 - t.dim()) + list(t.stride())


def _laid_out_by_rows(outer: tuple[int, ...], m: int, e: int) -> torch.Tensor:
    """(*outer, m, e) without memory, laid out as (b, m, r, n, e): what a row-sharded product reads
    as one matrix."""
    r, b, n = (1,) * (_OUTER - len(outer)) + tuple(outer)
    whole = torch.empty(b, m, r, n, e, device="meta").permute(2, 0, 3, 1, 4)
    return whole[(0,) * (_OUTER - len(outer))]
