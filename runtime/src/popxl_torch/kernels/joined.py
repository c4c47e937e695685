"""Products with a matrix whose shards lie on the replicas, as one product (see join_shards)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.linalg import matmul_2d
from popxl_torch.kernels.registry import Site, kernel


@kernel("MatMulColumns", replicated=True)
def matmul_columns(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """See :func:`columns_product`."""
    return columns_product


@kernel("MatMulReduced", replicated=True)
def matmul_reduced(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """See :func:`reduced_product`."""
    return reduced_product


def columns_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (m, k) times w (r, k, c) -> (r, m, c), laid out as (m, r, c)."""
    replicas, inner, columns = w.shape
    next_shard, next_row, next_column = w.stride()
    if next_shard != columns * next_column:
        return torch.stack([matmul_2d(x, shard) for shard in w])
    whole = replicas * columns
    y = matmul_2d(x, w.as_strided((inner, whole), (next_row, next_column)))
    return y.as_strided((replicas, x.shape[0], columns), (columns, whole, 1))


def reduced_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Sum over r of x (r, m, k) times w (r, k, n) -> (m, n)."""
    replicas, inner, columns = w.shape
    next_shard, next_row, next_column = w.stride()
    if next_shard == inner * next_row:
        whole = replicas * inner
        joined = w.as_strided((whole, columns), (next_row, next_column))
        if x.stride(0) == inner * x.stride(2):
            rows = x.as_strided((x.shape[1], whole), x.stride()[1:])
        else:
            rows = x.permute(1, 0, 2).reshape(-1, whole)
        return matmul_2d(rows, joined)
    total = matmul_2d(x[0], w[0])
    for replica in range(1, replicas):
        total += matmul_2d(x[replica], w[replica])
    return total
