"""Kernels of the kinds that the fusion passes make; see passes/fuse_*.py for what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from popxl_torch.kernels.elementwise import UNARY
from popxl_torch.kernels.joined import (
    columns_apart,
    columns_product,
    reduced_product,
    reduced_with,
)
from popxl_torch.kernels.linalg import matmul_product, matmul_product_with, matmul_with
from popxl_torch.kernels.registry import Site, kernel

_IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Gelu": partial(torch._C._nn.gelu_, approximate="tanh"),  # type: ignore[attr-defined]
    "GeluErf": torch._C._nn.gelu_,  # type: ignore[attr-defined]
    "Relu": torch.relu_,
    "Swish": partial(F.silu, inplace=True),
    "Tanh": torch.tanh_,
}
"""Activations that need no memory of their own."""

_Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_Run = Callable[..., torch.Tensor]


def _linear_with(site: Site, known: Sequence[torch.Tensor | None]) -> _Run | None:
    """:func:`linear` by a matrix that is known and, maybe, a bias that is."""
    x, w, *addends = known
    if x is not None or w is None or w.dim() != 2 or any(t is not None for t in addends[1:]):
        return None
    by_columns = site.attrs["product"] == "MatMulColumns"
    special, bias = _joined(site) if by_columns else _rows_apart(site), (addends or [None])[0]
    if any(special[1:]) or (any(special) if bias is None else by_columns and not special[0]):
        return None
    if bias is not None and special[0] and not by_columns:
        bias = _beside_rows(bias, site)
    product = _product_with(site, w)
    if product is None:
        return None
    apart = columns_apart(site) if by_columns else None
    activation = _activation(site)
    same = all(spec is not None and spec.dtype == "float32" for spec in site.ins)
    add = torch.Tensor.add_ if same else _add

    def run(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        y = product(x)
        if bias is not None:
            y = add(y, bias)
        if apart is not None:
            y = apart(y)
        for other in others:
            y = add(y, other)
        return y if activation is None else activation(y)

    return run


def _product_with(site: Site, w: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The product with ``w``, a matrix; of joined columns not yet apart."""
    if site.attrs["product"] == "MatMulReduced":
        return reduced_with(site, (None, w))
    if site.attrs["product"] == "MatMulColumns":
        return matmul_with(w)
    if any(site.varying_ins[:2]):
        return None
    return matmul_product_with(site, w)


@kernel("Linear", replicated=True, prepare=_linear_with)
def linear(site: Site, lead: int) -> _Run:
    """A product with a matrix, sums with it, an activation."""
    run = _columns(site) if site.attrs["product"] == "MatMulColumns" else _whole(site)
    activation = _activation(site)
    return run if activation is None else lambda *given: activation(run(*given))


def _activation(site: Site) -> _Run | None:
    """The activation of a product that nobody else has, in place where it is a whole tensor."""
    name = site.attrs["activation"]
    if name not in _IN_PLACE:
        return UNARY.get(name)
    anew, in_place = UNARY[name], _IN_PLACE[name]
    return lambda y: anew(y) if 0 in y.stride() else in_place(y)


def _columns(site: Site) -> _Run:
    """Joined biases are added to the joined product, the rest to each replica's part of it."""
    apart = columns_apart(site)
    joined = _joined(site)
    first = [at for at, flag in enumerate(joined) if flag]
    then = [at for at, flag in enumerate(joined) if not flag]

    def run(x: torch.Tensor, w: torch.Tensor, *addends: torch.Tensor) -> torch.Tensor:
        y = columns_product(x, w)
        for at in first:
            y = _add(y, addends[at])
        y = apart(y)
        for at in then:
            y = _add(y, addends[at])
        return y

    return run


def _whole(site: Site) -> _Run:
    reduced = site.attrs["product"] == "MatMulReduced"
    product: _Product = reduced_product if reduced else matmul_product(site)
    rows = _rows_apart(site)

    def run(x: torch.Tensor, w: torch.Tensor, *addends: torch.Tensor) -> torch.Tensor:
        y = product(x, w)
        for addend, is_row in zip(addends, rows, strict=True):
            if is_row:
                addend = _beside_rows(addend, site)
            y = _add(y, addend)
        return y

    return run


def _joined(site: Site) -> list[bool]:
    """Which addends are rows of joined columns."""
    wide = (site.outs[0].shape[-1] * site.replicas,)
    return [spec is not None and spec.shape == wide for spec in site.ins[2:]]


def _rows_apart(site: Site) -> list[bool]:
    """Which addends are rows that differ by replica, (r, n)."""
    return [
        vary and spec is not None and len(spec.shape) == 1
        for spec, vary in zip(site.ins[2:], site.varying_ins[2:], strict=True)
    ]


def _beside_rows(addend: torch.Tensor, site: Site) -> torch.Tensor:
    """(r, n) with axes of 1 between, so that it broadcasts behind the replica axis."""
    inner = (1,) * (len(site.outs[0].shape) - 1)
    return addend.reshape(addend.shape[0], *inner, addend.shape[1])


def _add(y: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """In place where ``y`` is a whole tensor of its own and wide enough."""
    if 0 not in y.stride() and y.element_size() >= addend.element_size():
        return y.add_(addend)
    return y + addend


@kernel("Sum", broadcast=True)
def several(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The sum of the inputs from the left; the others broadcast to the first two's.

    Only replicas may be more than so far, where the first ones are the same on all.
    """

    def run(x: torch.Tensor, y: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        total = x + y
        for other in others:
            total = total + other if other.numel() > total.numel() else total.add_(other)
        return total

    return run


@kernel("LayerNorm")
def layer_norm(site: Site, lead: int) -> Callable[..., Any]:
    """Normalises the last axis, then scales and shifts it if there are weights for that."""
    spec = site.ins[0]
    assert spec is not None
    size, eps = spec.shape[-1:], site.attrs["eps"]
    if not lead:
        return lambda x, w=None, b=None: F.layer_norm(x, size, w, b, eps)
    inner = (1,) * (len(spec.shape) - 1)

    def run(x: torch.Tensor, *affine: torch.Tensor) -> torch.Tensor:
        y = F.layer_norm(x, size, eps=eps)
        parts = [t.reshape(t.shape[0], *inner, *size) for t in affine]
        if len(parts) == 2:
            return torch.addcmul(parts[1], y, parts[0])
        return y * parts[0] if parts else y

    return run
