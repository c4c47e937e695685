"""Matrix products.

On CPUs half-precision matrix products of the libraries are slow and round in between. Here half
operands are widened to float32 and the result stays float32 until the binder rounds it. Weights
are widened in registers by the C++ kernels (see the package native) or, where those do not fit, in
tiles, so that no copy of them in float32 ever exists. RULES says which is used when.
"""

from __future__ import annotations

import functools
import math
import platform
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.records import Spec
from popxl_torch.kernels.float8 import FLOAT8, scaled_product
from popxl_torch.kernels.native import native
from popxl_torch.kernels.quantised import QuantisedTensor, product_with
from popxl_torch.kernels.registry import Site, kernel

TILE_COLUMNS = 512
"""Output columns per tile. 256 to 2048 took the same time for 168 and 644 rows on two cores."""

TILED_ABOVE = 1 << 20
"""Elements of a half matrix from which it is widened in tiles."""

NATIVE_FROM = 1 << 14
"""Elements of a half matrix from which the call into C++ (4 microseconds) pays."""

DOT_ROWS = 24
"""Rows up to which sums along the weights' rows beat tiles. They are equal at 24 to 48 rows with
AVX2, at over 48 with AVX-512; with fewer, the dot products take down to half the time."""

STOCK_ROWS = 2
"""Rows up to which torch's own product with float16 weights is faster than tiles: 0.65 and 0.35 of
the read bandwidth for one and two rows, tiles 0.28 and 0.22; at four they are equal. (Measured with
AVX-512 and with AVX2.) It sums up in float32; x and the result are rounded to float16, as they may
be in a float16 program."""

BRAIN_DOT_ROWS = 12
"""As DOT_ROWS for bfloat16 weights where the processor multiplies pairs of bfloat16: torch's own
product, which uses that, and the sums along rows take the same time at 12 rows; at 24 it takes 0.8,
at 168 half of that of tiles widened to float32, at 644 half."""

_HALF = (torch.float16, torch.bfloat16)
_kept = threading.local()


def scratch(elements: int, device: torch.device) -> torch.Tensor:
    """Float32 memory that this thread reuses from call to call, of that many elements or more."""
    buffers: dict[torch.device, torch.Tensor] | None = getattr(_kept, "buffers", None)
    if buffers is None:
        buffers = _kept.buffers = {}
    found = buffers.get(device)
    if found is None or found.numel() < elements:
        with torch.inference_mode(False):  # it serves outside of runs too
            found = buffers[device] = torch.empty(elements, dtype=torch.float32, device=device)
    return found


def matmul_2d(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """``x @ w`` of two matrices of any strides; half inputs give an exact-product float32 result.

    Args:
        x: (m, k).
        w: (k, n). Half weights are best stored as (n, k), of which this is a transposed view.

    Returns:
        (m, n); float32 on CPUs if an input is half, else torch's own dtype.
    """
    if isinstance(w, QuantisedTensor):
        return product_with(w, matmul_2d)(x)
    if x.dtype == w.dtype == torch.float32:
        return torch.mm(x, w)
    rows = x.shape[0]
    for rule in RULES.get((w.device.type, w.dtype), ()):
        if rows <= rule.rows and rule.fits(x, w):
            return rule.product(x, w)
    if x.is_cuda:
        return torch.mm(*_same_dtype(x, w))
    return torch.mm(_widened(x), _widened(w))


def matmul_with(w: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """:func:`matmul_2d` with a matrix that is known, as a function of ``x``."""
    if isinstance(w, QuantisedTensor):
        return product_with(w, matmul_2d)
    if w.dtype != torch.float32:
        return lambda x: matmul_2d(x, w)
    return lambda x: torch.mm(x, w) if x.dtype == torch.float32 else matmul_2d(x, w)


def _widened(t: torch.Tensor) -> torch.Tensor:
    return t.float() if t.dtype in _HALF else t


def _same_dtype(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For GPUs: the narrower of two float types, in which tensor cores multiply."""
    if x.dtype == w.dtype:
        return x, w
    narrow = x.dtype if x.element_size() < w.element_size() else w.dtype
    return x.to(narrow), w.to(narrow)


def _matmul_tiled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    (m, k), n = x.shape, w.shape[1]
    x = _widened(x)
    y = torch.empty(m, n, dtype=torch.float32, device=x.device)
    by_columns = w.stride(0) == 1  # stored as (n, k): a tile's columns are contiguous rows there
    kept = scratch(min(n, TILE_COLUMNS) * k, x.device)
    for start in range(0, n, TILE_COLUMNS):
        columns = min(TILE_COLUMNS, n - start)
        piece = kept[: columns * k]
        tile = piece.view(columns, k).t() if by_columns else piece.view(k, columns)
        tile.copy_(w[:, start : start + columns])
        torch.mm(x, tile, out=y[:, start : start + columns])
    return y


def _native_reads(x: torch.Tensor, w: torch.Tensor) -> bool:
    return (
        w.stride(0) == 1
        and w.numel() >= NATIVE_FROM
        and x.dtype in (torch.float32, *_HALF)
        and native() is not None
    )


def _native_input(x: torch.Tensor) -> torch.Tensor:
    x = _widened(x)
    return x if x.stride(1) == 1 else x.contiguous()


def _native_dot(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    library = native()
    assert library is not None
    return library.dot(_native_input(x), w.t())


def _native_tiles(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    library = native()
    assert library is not None
    x, w = _native_input(x), w.t()
    return library.tiles(x, w, scratch(library.scratch_size(x, w), x.device))


def _stock_reads(x: torch.Tensor, w: torch.Tensor) -> bool:
    # Other processors' float16 products may also sum up in float16.
    return _is_x86() and w.stride(0) == 1 and w.numel() >= NATIVE_FROM


@functools.cache
def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _stock_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.linear(x.to(w.dtype), w.t()).float()


def _brain_reads(x: torch.Tensor, w: torch.Tensor) -> bool:
    return _multiplies_brain() and w.stride(0) == 1 and w.numel() >= NATIVE_FROM


@functools.cache
def _multiplies_brain() -> bool:
    """Whether the processor has products of bfloat16, and torch may use them."""
    has = torch.cpu.get_capabilities()
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # as ATEN_CPU_CAPABILITY may ask for
        return False
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _is_big(x: torch.Tensor, w: torch.Tensor) -> bool:
    return w.numel() > TILED_ABOVE


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to multiply, for up to so many rows of x, where ``fits(x, w)``."""

    rows: float
    fits: Callable[[torch.Tensor, torch.Tensor], bool]
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


_NATIVE = (
    Rule(DOT_ROWS, _native_reads, _native_dot),
    Rule(math.inf, _native_reads, _native_tiles),
)
_TILED = Rule(math.inf, _is_big, _matmul_tiled)

RULES: dict[tuple[str, torch.dtype], tuple[Rule, ...]] = {
    ("cpu", torch.float16): (*_NATIVE, Rule(STOCK_ROWS, _stock_reads, _stock_product), _TILED),
    ("cpu", torch.bfloat16): (
        Rule(BRAIN_DOT_ROWS, _native_reads, _native_dot),
        Rule(math.inf, _brain_reads, _stock_product),
        *_NATIVE,
        _TILED,
    ),
}
"""By device and storage of w. The first rule that fits is taken; without one, torch's own product
of widened matrices. Processors' products of bfloat16 sum up in float32, but x and the result are
rounded to bfloat16: to as many bits as the weights have.
``runtime/benchmarks/bench_kernels.py`` measures all of them side by side."""


def _matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """NumPy's product of operands with at least two axes each."""
    if w.dim() == 2:
        if x.dim() == 2:
            return matmul_2d(x, w)
        return matmul_2d(x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], w.shape[1])
    if x.is_cuda:
        return torch.matmul(*_same_dtype(x, w))
    return torch.matmul(_widened(x), _widened(w))


def _uniform(t: torch.Tensor) -> bool:
    """Whether the leading axis was made by expanding one value."""
    return t.shape[0] == 1 or t.stride(0) == 0


def _matmul_replicated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """:func:`_matmul` for each element of the leading replica axis of both."""
    if _uniform(w):
        if _uniform(x):
            y = _matmul(x[0], w[0])
            return y.expand(x.shape[0], *y.shape)
        if w.dim() == 3:  # one matrix for all replicas: their rows together are one product
            return _matmul(x, w[0])
    if w.dim() == 3 and w[0].numel() > TILED_ABOVE:
        return torch.stack([_matmul(x[r], w[r]) for r in range(x.shape[0])])
    missing = x.dim() - w.dim()
    if missing > 0:
        w = w.reshape(w.shape[0], *[1] * missing, *w.shape[1:])
    elif missing < 0:
        x = x.reshape(x.shape[0], *[1] * -missing, *x.shape[1:])
    return _matmul(x, w)


def matmul_product(site: Site) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The product of the first two inputs as stored, x of two axes or more and w of two."""
    x_varies, w_varies = site.varying_ins[:2]
    if not (x_varies or w_varies):
        return _matmul

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = x if x_varies else x.expand(site.replicas, *x.shape)
        w = w if w_varies else w.expand(site.replicas, *w.shape)
        return _matmul_replicated(x, w)

    return run


def matmul_product_with(site: Site, w: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """:func:`matmul_product` with a matrix that is known, the same on all replicas, as x is."""
    product, shape, inner = matmul_with(w), site.outs[0].shape, w.shape[0]
    if len(shape) == 2:
        return product
    return lambda x: product(x.reshape(-1, inner)).view(shape)


def _matmul_with(
    site: Site, known: Sequence[torch.Tensor | None]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """:func:`matmul` by a matrix of floats that is known."""
    (x, w), (lhs, rhs) = known[:2], site.ins[:2]
    assert lhs is not None
    assert rhs is not None
    if x is not None or w is None or any((*site.varying_ins, *site.varying_outs)):
        return None
    if lhs.dtype in FLOAT8:
        return None
    floats = w.is_floating_point() and lhs.dtype == rhs.dtype
    return matmul_product_with(site, w) if floats and len(lhs.shape) > 1 and w.dim() == 2 else None


@kernel("MatMul", raw=True, prepare=_matmul_with)
def matmul(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The product of both inputs along their last and second-last axes; float8 ones are scaled."""
    lhs, rhs = site.ins[0], site.ins[1]
    assert lhs is not None
    assert rhs is not None
    if lhs.dtype in FLOAT8:
        return scaled_product(site, _product(lhs, rhs, lead))
    if lhs.dtype != rhs.dtype:
        raise popart_exception(
            f"{site.where}: matmul of different data types: {lhs} and {rhs}. Cast one of them."
        )
    return _product(lhs, rhs, lead)


def _product(lhs: Spec, rhs: Spec, lead: int) -> Callable[..., torch.Tensor]:
    whole = "int" in lhs.dtype or lhs.dtype == "bool"
    vector_lhs, vector_rhs = len(lhs.shape) == 1, len(rhs.shape) == 1
    product = _matmul_replicated if lead else _matmul

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if whole and x.is_cuda:  # GPUs multiply no integer matrices
            x, w = x.double(), w.double()
        y = product(x.unsqueeze(-2) if vector_lhs else x, w.unsqueeze(-1) if vector_rhs else w)
        if vector_rhs:
            y = y.squeeze(-1)
        return y.squeeze(-1 if vector_rhs else -2) if vector_lhs else y

    return run
