"""Matrices kept in other types than the programs', and products with them.

A :class:`QuantisedTensor` is a tensor to all kernels: shape, strides and dtype are those of the
float matrix that it stands for, views of it are made as of any tensor, and whatever has no better
way gets its numbers, rounded to float16. Products read the codes themselves.

The formats are those that a host array names in ``popxl_storage``:

- ``int8``: codes (n, k) int8, scales (n,) float32;
- ``int4``: codes (n, k / 2) uint8, scales (n, k / 32) float16. The 32 elements of a group are 16
  bytes: byte i holds element i in its low half and element i + 16 in its high one, each plus 8;
- ``bfloat16``: codes (n, k) int16 or uint16, the numbers' bits; no scales (None).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from popxl_torch.kernels.native import native
from popxl_torch.kernels.native.quantised import dot, widened

GROUP = 32
"""Elements that share a scale in int4."""

DOT_ROWS = {"int8": 48, "int4": 64}
"""Rows of x up to which sums along the rows of codes are taken; above, codes are widened in tiles.
Sums of int8 take half the time of tiles at 32 rows; with AVX2 they take as much at 64. Those of
int4 are at least twice as fast at any number, but they round x: many rows are prompts, which are
read once. ``runtime/benchmarks/bench_quantised.py`` measures what is used."""

TILE_ROWS = 2048
"""Rows of codes that are widened at once: each time the product streams all of x."""

_kept = threading.local()

_ATEN = torch.ops.aten
_VIEWS = frozenset(
    {
        _ATEN.alias.default,
        _ATEN.as_strided.default,
        _ATEN.detach.default,
        _ATEN.expand.default,
        _ATEN.permute.default,
        _ATEN.select.int,
        _ATEN.slice.Tensor,
        _ATEN.split.Tensor,
        _ATEN.split_with_sizes.default,
        _ATEN.squeeze.dim,
        _ATEN.t.default,
        _ATEN.transpose.int,
        _ATEN.unbind.int,
        _ATEN.unsqueeze.default,
        _ATEN.view.default,
    }
)


class QuantisedTensor(torch.Tensor):
    """A view of a quantised matrix (n, k).

    Attributes:
        codes: of the whole matrix, its rows contiguous.
        scales: likewise; None for bfloat16.
        format: "int8", "int4" or "bfloat16".
        geometry: a tensor without memory that has the shape, strides and offset of the view, over
            n·k elements row by row.
    """

    codes: torch.Tensor
    scales: torch.Tensor | None
    format: str
    geometry: torch.Tensor

    @staticmethod
    def __new__(
        cls, codes: torch.Tensor, scales: torch.Tensor | None, format: str, geometry: torch.Tensor
    ) -> QuantisedTensor:
        """As the attributes."""
        self: QuantisedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            geometry.shape,
            strides=geometry.stride(),
            storage_offset=geometry.storage_offset(),
            dtype=geometry.dtype,
            device=codes.device,
        )
        self.codes, self.scales, self.format, self.geometry = codes, scales, format, geometry
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Format and shape."""
        return f"QuantisedTensor({self.format}, {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Views are views; anything else sees the numbers."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func in _VIEWS and isinstance(first, QuantisedTensor):
            # A view of a tensor of no inference mode, which all are, must not be of one either.
            with torch.inference_mode(False):
                seen = func(first.geometry, *args[1:], **kwargs)
                if isinstance(seen, torch.Tensor):
                    return first.seen_as(seen)
                return [first.seen_as(part) for part in seen]
        args, kwargs = torch.utils._pytree.tree_map_only(
            QuantisedTensor, QuantisedTensor.numbers, (args, kwargs)
        )
        return func(*args, **kwargs)

    def seen_as(self, geometry: torch.Tensor) -> QuantisedTensor:
        """Another view of the same matrix."""
        return QuantisedTensor(self.codes, self.scales, self.format, geometry)

    def moved(self, device: torch.device) -> QuantisedTensor:
        """Its codes and scales on another device."""
        return self.with_parts([part.to(device) for part in self.parts])

    @property
    def parts(self) -> list[torch.Tensor]:
        """Codes and, if there are, scales."""
        return [self.codes] if self.scales is None else [self.codes, self.scales]

    def with_parts(self, parts: Sequence[torch.Tensor]) -> QuantisedTensor:
        """The same view of other :attr:`parts`."""
        codes, *scales = parts
        return QuantisedTensor(codes, scales[0] if scales else None, self.format, self.geometry)

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes and scales that the view covers."""
        g = self.geometry
        count = 1
        for size, stride in zip(g.shape, g.stride(), strict=True):
            count *= int(size) if stride else 1
        n, k = self.codes.shape[0], _inner(self.codes, self.format)
        whole = sum(part.nbytes for part in self.parts)
        return whole * count // (n * k)

    def numbers(self) -> torch.Tensor:
        """The view's numbers, float16 or the dtype that it stands for."""
        g = self.geometry
        whole = _dequantised(self.codes, self.scales, self.format).to(g.dtype)
        return whole.as_strided(g.shape, g.stride(), g.storage_offset())

    def rows(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Codes and scales of a view (k', n') that is a block of rows and columns, transposed.

        Returns:
            As for a whole matrix, (n', k'); None for other views.
        """
        g = self.geometry
        k = _inner(self.codes, self.format)
        if g.dim() != 2 or g.stride(0) != 1 or g.stride(1) != k:
            return None
        row, column = divmod(int(g.storage_offset()), k)
        inner, outer = g.shape
        rows = slice(row, row + outer)
        if self.format != "int4":
            scales = None if self.scales is None else self.scales[rows]
            return self.codes[rows, column : column + inner], scales
        assert self.scales is not None
        if column % GROUP or inner % GROUP:
            return None
        end = column + inner
        codes = self.codes[rows, column // 2 : end // 2]
        return codes, self.scales[rows, column // GROUP : end // GROUP]


def from_storage(storage: Mapping[str, Any], dtype: torch.dtype) -> QuantisedTensor | None:
    """The tensor of a host array that names its storage in ``popxl_storage``.

    Args:
        storage: "format", "codes" and "scales" (arrays, or None), "cut" ("", "columns" or "rows")
            and "shards": the array is the matrix (n, k), or its shards (r, k, n/r) or (r, k/r, n).
        dtype: of the numbers it stands for.

    Returns:
        None for a format that is not known here.
    """
    format, r = storage["format"], storage["shards"]
    if format not in ("int8", "int4", "bfloat16"):
        return None
    codes, scales = (
        None if part is None else torch.from_numpy(np.asarray(part))
        for part in (storage["codes"], storage["scales"])
    )
    assert codes is not None
    n, k = codes.shape[0], _inner(codes, format)
    geometry = torch.empty((n, k), dtype=dtype, device="meta")
    if storage["cut"] == "columns":
        geometry = geometry.view(r, n // r, k).transpose(1, 2)
    elif storage["cut"] == "rows":
        geometry = geometry.view(n, r, k // r).permute(1, 2, 0)
    if storage["cut"] and r == 1:
        geometry = geometry[0]
    return QuantisedTensor(codes, scales, format, geometry)


def _inner(codes: torch.Tensor, format: str) -> int:
    return int(codes.shape[1]) * (2 if format == "int4" else 1)


def _dequantised(codes: torch.Tensor, scales: torch.Tensor | None, format: str) -> torch.Tensor:
    """(n, k) float32."""
    if scales is None:
        return codes.view(torch.bfloat16).float()
    if format == "int8":
        return codes.float() * scales[:, None]
    groups = codes.reshape(*scales.shape, GROUP // 2)
    values = torch.cat([groups & 15, groups >> 4], dim=-1).float() - 8
    return (values * scales[..., None].float()).reshape(codes.shape[0], -1)


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def product_with(w: QuantisedTensor, multiply: Product) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function ``x -> x @ w``.

    Args:
        w: (k, n).
        multiply: the product with a half-precision matrix.

    Returns:
        A function from (m, k) to (m, n), float32 on CPUs.
    """
    block = w.rows()
    if block is None:
        return lambda x: multiply(x, w.numbers())
    codes, scales = block
    if scales is None:
        brain = codes.view(torch.bfloat16).t()
        return lambda x: multiply(x, brain)
    most = DOT_ROWS[w.format]

    def run(x: torch.Tensor) -> torch.Tensor:
        library = native() if x.device.type == "cpu" else None
        if library is not None and x.shape[0] <= most:
            x = x.float()
            x = x if x.stride(1) == 1 else x.contiguous()
            return dot(library, x, codes, scales)
        return _by_tiles(x, codes, scales, w.format, multiply)

    return run


def _by_tiles(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, format: str, multiply: Product
) -> torch.Tensor:
    """Widens some rows of codes at a time, which the caches still hold when they are multiplied."""
    library = native() if x.device.type == "cpu" else None
    n, k = codes.shape[0], _inner(codes, format)
    y = torch.empty(x.shape[0], n, dtype=torch.float32, device=x.device)
    for start in range(0, n, TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        if library is not None:
            tile = widened(library, codes[rows], scales[rows], _tile(min(n, TILE_ROWS) * k))
        else:
            tile = _dequantised(codes[rows], scales[rows], format).half()
        y[:, rows] = multiply(x, tile.t())
    return y


def _tile(elements: int) -> torch.Tensor:
    """Float16 memory that this thread reuses from call to call."""
    found: torch.Tensor | None = getattr(_kept, "tile", None)
    if found is None or found.numel() < elements:
        with torch.inference_mode(False):  # it serves outside of runs too
            found = _kept.tile = torch.empty(elements, dtype=torch.float16)
    return found
