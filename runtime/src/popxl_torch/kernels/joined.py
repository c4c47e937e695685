"""Products with a matrix whose shards lie on the replicas, as one product (see join_shards)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.linalg import matmul_2d
from popxl_torch.kernels.registry import Site, kernel


@kernel("MatMulColumns", replicated=True)
def matmul_columns(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """x (m, k) times w (r, k, c) -> (r, m, c), laid out as (m, r, c)."""

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        replicas, inner, columns = w.shape
        if w.stride(0) == columns * w.stride(2):
            joined = w.permute(1, 0, 2).reshape(inner, replicas * columns)  # a view
            result = matmul_2d(x, joined).reshape(-1, replicas, columns)
            return result.permute(1, 0, 2)
        return torch.stack([matmul_2d(x, shard) for shard in w])

    return run


@kernel("MatMulReduced", replicated=True)
def matmul_reduced(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """Sum over r of x (r, m, k) times w (r, k, n) -> (m, n)."""

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        replicas, inner, columns = w.shape
        if w.stride(0) == inner * w.stride(1):
            joined = w.reshape(replicas * inner, columns)  # a view
            rows = x.permute(1, 0, 2).reshape(-1, replicas * inner)
            return matmul_2d(rows, joined)
        total = matmul_2d(x[0], w[0])
        for replica in range(1, replicas):
            total += matmul_2d(x[replica], w[replica])
        return total

    return run
