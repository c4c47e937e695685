"""Products with a matrix whose shards lie on the replicas, as one product (see join_shards)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from popxl_torch.kernels.linalg import matmul_2d, matmul_with
from popxl_torch.kernels.registry import Site, kernel

_Product = Callable[[torch.Tensor], torch.Tensor]


@kernel("JoinColumns", replicated=True)
def join_columns(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """(r, k, c) as (k, r·c), or as it is if no view can join it; (r, c) as (r·c,)."""

    def run(w: torch.Tensor) -> torch.Tensor:
        if w.dim() == 2:
            return w.reshape(-1)
        replicas, inner, columns = w.shape
        next_shard, next_row, next_column = w.stride()
        if next_shard != columns * next_column:
            return w
        return w.as_strided((inner, replicas * columns), (next_row, next_column))

    return run


@kernel("JoinRows", replicated=True)
def join_rows(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """(r, k, n) as (r·k, n), or as it is if no view can join it."""

    def run(w: torch.Tensor) -> torch.Tensor:
        replicas, inner, columns = w.shape
        next_shard, next_row, next_column = w.stride()
        if next_shard != inner * next_row:
            return w
        return w.as_strided((replicas * inner, columns), (next_row, next_column))

    return run


def columns_with(site: Site, known: Sequence[torch.Tensor | None]) -> _Product | None:
    """:func:`matmul_columns` by joined columns that are known."""
    w = known[1]
    if w is None or w.dim() != 2:
        return None
    product, apart = matmul_with(w), columns_apart(site)
    return lambda x: apart(product(x))


def reduced_with(site: Site, known: Sequence[torch.Tensor | None]) -> _Product | None:
    """:func:`reduced_product` by joined rows that are known."""
    w = known[1]
    if w is None or w.dim() != 2:
        return None
    product, inner = matmul_with(w), w.shape[0]
    return lambda x: product(_rows(x, inner))


@kernel("MatMulColumns", replicated=True, prepare=columns_with)
def matmul_columns(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """x (m, k) times joined columns -> (r, m, c)."""
    split = columns_apart(site)
    return lambda x, w: split(columns_product(x, w))


@kernel("MatMulReduced", replicated=True, prepare=reduced_with)
def matmul_reduced(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """See :func:`reduced_product`."""
    return reduced_product


def columns_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (m, k) times w, joined columns or shards (r, k, c) -> (m, r·c)."""
    if w.dim() == 2:
        return matmul_2d(x, w)
    return torch.cat([matmul_2d(x, shard) for shard in w], 1)


def columns_apart(site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the product (m, r·c) to what each replica has of it, (r, m, c), a view."""
    replicas, (rows, columns) = site.replicas, site.outs[0].shape
    shape, strides = (replicas, rows, columns), (columns, replicas * columns, 1)
    return lambda y: y.as_strided(shape, strides)


def _rows(x: torch.Tensor, inner: int) -> torch.Tensor:
    """(r, m, k) as (m, r·k), a view if there can be one."""
    _, rows, columns = x.shape
    next_shard, next_row, next_column = x.stride()
    if next_shard == columns * next_column:
        return x.as_strided((rows, inner), (next_row, next_column))
    return x.permute(1, 0, 2).reshape(-1, inner)


def reduced_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Sum over r of x (r, m, k) times w, joined rows or shards (r, k, n) -> (m, n)."""
    if w.dim() == 2:
        return matmul_2d(_rows(x, w.shape[0]), w)
    total = matmul_2d(x[0], w[0])
    for replica in range(1, len(w)):
        total += matmul_2d(x[replica], w[replica])
    return total
