"""Kernels of the kinds that the fusion passes make; see passes/fuse_*.py for what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from popxl_torch.kernels.elementwise import UNARY
from popxl_torch.kernels.joined import columns_apart, columns_product, reduced_product
from popxl_torch.kernels.linalg import matmul_product
from popxl_torch.kernels.registry import Site, kernel

_Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_Run = Callable[..., torch.Tensor]


@kernel("Linear", replicated=True)
def linear(site: Site, lead: int) -> _Run:
    """A product with a matrix, sums with it, an activation."""
    run = _columns(site) if site.attrs["product"] == "MatMulColumns" else _whole(site)
    activation = UNARY.get(site.attrs["activation"])
    return run if activation is None else lambda *given: activation(run(*given))


def _columns(site: Site) -> _Run:
    """Joined biases are added to the joined product, the rest to each replica's part of it."""
    apart = columns_apart(site)
    shape = site.outs[0].shape
    wide = (shape[-1] * site.replicas,)
    joined = [spec is not None and spec.shape == wide for spec in site.ins[2:]]
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
    rank = len(site.outs[0].shape)
    rows = [
        vary and len(spec.shape) == 1
        for spec, vary in zip(site.ins[2:], site.varying_ins[2:], strict=True)
        if spec is not None
    ]
    # A row that differs by replica is (r, n): it broadcasts behind the replica axis.
    inner = (1,) * (rank - 1)

    def run(x: torch.Tensor, w: torch.Tensor, *addends: torch.Tensor) -> torch.Tensor:
        y = product(x, w)
        for addend, is_row in zip(addends, rows, strict=True):
            if is_row:
                addend = addend.reshape(addend.shape[0], *inner, addend.shape[1])
            y = _add(y, addend)
        return y

    return run


def _add(y: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """In place where ``y`` is a whole tensor of its own and wide enough."""
    if 0 not in y.stride() and y.element_size() >= addend.element_size():
        return y.add_(addend)
    return y + addend


@kernel("Sum", broadcast=True)
def several(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """The sum of the inputs from the left; the others broadcast to the first two's."""

    def run(x: torch.Tensor, y: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        total = x + y
        for other in others:
            total += other
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
