"""Rotary positions: pairs of channels turned by angles whose sines and cosines are given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch

from popxl_torch.kernels.native import Rotation, native
from popxl_torch.kernels.registry import Site, kernel

_Parts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
"""From x ([r,] b, s, n, channels) and tables ([r,] [1 or b,] s, pairs) to c parts of the channels,
turned."""


@kernel("RotaryPosEmbed")
def rotary_pos_embed(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """Each head of ([r,] b, s, n, d) is turned by its position."""
    spec = site.ins[0]
    assert spec is not None
    rotate = _rotation(site, lead, 0, 1, spec.shape[-1])
    return lambda x, sin, cos: rotate(x, sin, cos)[0]


@kernel("RotarySplit")
def rotary_split(site: Site, lead: int) -> _Parts:
    """Parts of the last axis, neighbouring ones of one size turned (see passes/fuse_rotary.py)."""
    sizes, (first, count) = site.attrs["sizes"], site.attrs["rotated"]
    starts = [sum(sizes[:part]) for part in range(len(sizes))]
    rotate = _rotation(site, lead, starts[first], count, sizes[first])
    others = list(zip(starts, sizes, strict=True))
    before, behind = others[:first], others[first + count :]

    def run(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> Sequence[torch.Tensor]:
        return (
            *(x.narrow(-1, start, size) for start, size in before),
            *rotate(x, sin, cos),
            *(x.narrow(-1, start, size) for start, size in behind),
        )

    return run


def _rotation(site: Site, lead: int, start: int, count: int, size: int) -> _Parts:
    """Turns ``count`` parts of ``size`` channels each, which begin at channel ``start``."""
    width, halves = site.attrs["rotary_dim"], site.attrs["halves"]
    by_torch = _by_torch(width, halves)
    by_library = _ByLibrary(width // 2, halves, start, count, size)

    def run(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> Sequence[torch.Tensor]:
        parts = by_library(x, sin, cos, lead)
        if parts is None:
            x = x.narrow(-1, start, count * size).unflatten(-1, (count, size))
            sin, cos = (_over_heads(table, lead) for table in (sin, cos))
            parts = by_torch(x, sin, cos).unbind(-2)
        return parts

    return run


def _over_heads(table: torch.Tensor, lead: int) -> torch.Tensor:
    """A table as ([r,] 1 or b, s, 1, 1, pairs)."""
    table = table if table.dim() - lead == 3 else table.unsqueeze(lead)
    return table[..., None, None, :]


# -- torch ----------------------------------------------------------------------------------


_Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _by_torch(width: int, halves: bool) -> _Turn:
    """Of x (..., d), and sines and cosines that broadcast to its pairs."""

    def apart(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        x1, x2 = x[..., : width // 2], x[..., width // 2 : width]
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, x[..., width:]), -1)

    def neighbours(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        turned = x[..., :width].unflatten(-1, (-1, 2))
        if turned.stride(-1) != 1 or any(place % 2 for place in _places(turned)):
            turned = turned.contiguous()
        y = torch.view_as_complex(turned) * torch.complex(cos, sin)
        y = torch.view_as_real(y).flatten(-2)
        return y if width == x.shape[-1] else torch.cat((y, x[..., width:]), -1)

    return apart if halves else neighbours


def _places(t: torch.Tensor) -> tuple[int, ...]:
    """Offset and strides but the last: even ones where pairs of numbers are complex ones."""
    return (int(t.storage_offset()), *t.stride()[:-1])


# -- C++ ------------------------------------------------------------------------------------


class _ByLibrary:
    """The C++ kernel at one place of a program, where shapes are always the same."""

    def __init__(self, pairs: int, halves: bool, start: int, count: int, size: int) -> None:
        self.pairs, self.halves = pairs, halves
        self.start, self.count, self.size = start, count, size
        self.layouts: dict[Any, Any] = {}

    def __call__(
        self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, lead: int
    ) -> Sequence[torch.Tensor] | None:
        """The parts; None if the library is not there or does not read such tensors."""
        key = (x.stride(), sin.stride(), cos.stride(), x.dtype, sin.dtype, cos.dtype)
        if key not in self.layouts:
            self.layouts[key] = self._layout(x, sin, cos, lead)
        layout = self.layouts[key]
        if layout is None:
            return None
        rotate, described, shape = layout
        y = torch.empty(shape)
        place = x.data_ptr() + self.start * x.element_size()
        rotate(described, place, sin.data_ptr(), cos.data_ptr(), y.data_ptr())
        return y.unbind(0)

    def _layout(self, x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, lead: int) -> Any:
        library, given = native(), (x, sin, cos)
        fits = all(t.dtype == torch.float32 and t.stride(-1) == 1 for t in given)
        if library is None or x.is_cuda or not fits:
            return None
        ones = (None,) * (1 - lead)
        sizes = x[ones].shape[:-1]
        strides = [*x[ones].stride()[:-1], self.size]
        for table in (sin, cos):
            table = table if table.dim() - lead == 3 else table.unsqueeze(lead)
            strides += table[ones].expand(*sizes[:3], -1).stride()[:-1]
        described = Rotation(
            (ctypes.c_int64 * 5)(*sizes, self.count),
            self.size,
            self.pairs,
            self.halves,
            (ctypes.c_int64 * 11)(*strides),
        )
        shape = (self.count, *x.shape[:-1], self.size)
        return library.functions["rotate"], ctypes.byref(described), shape
