"""Products with quantised weights in C++ (quantised.cpp); see kernels/quantised.py for formats."""

from __future__ import annotations

import torch

from popxl_torch.kernels.native import Native, threads_for

_GROUP, _MOST_LANES = 32, 16


def dot(
    library: Native, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """``x @ w.T``, for few rows; a row's result does not depend on how many there are.

    Args:
        library: where the functions are.
        x: (m, k) float32, rows contiguous. With int4 it is rounded to int8, 32 elements at a time.
        codes: (n, k) int8 or (n, k / 2) uint8, rows contiguous, any distance between them.
        scales: (n,) float32 or (n, k / 32) float16, likewise.

    Returns:
        (m, n) float32.
    """
    (m, k), n = x.shape, codes.shape[0]
    y = torch.empty(m, n, dtype=torch.float32)
    sizes = (library.index, m, n, k, x.data_ptr(), x.stride(0), codes.data_ptr(), codes.stride(0))
    threads = threads_for(m * n * k)
    if codes.dtype == torch.int8:
        library.functions["dot8"](*sizes, scales.data_ptr(), y.data_ptr(), n, threads, library.fork)
        return y
    groups = -(-k // (_GROUP * _MOST_LANES)) * _MOST_LANES
    scratch = torch.empty(m * groups * (_GROUP + 8), dtype=torch.uint8)
    library.functions["dot4"](
        *(*sizes, scales.data_ptr(), scales.stride(0), y.data_ptr(), n),
        *(scratch.data_ptr(), threads, library.fork),
    )
    return y


def widened(
    library: Native, codes: torch.Tensor, scales: torch.Tensor, memory: torch.Tensor
) -> torch.Tensor:
    """The numbers of codes and scales as in :func:`dot`, (n, k) float16, in memory for them."""
    n = codes.shape[0]
    whole = codes.dtype == torch.int8
    k = codes.shape[1] if whole else 2 * codes.shape[1]
    out = memory[: n * k].view(n, k)
    start = (library.index, n, k, codes.data_ptr(), codes.stride(0), scales.data_ptr())
    end = (out.data_ptr(), threads_for(n * k), library.fork)
    if whole:
        library.functions["widen8"](*start, *end)
    else:
        library.functions["widen4"](*start, scales.stride(0), *end)
    return out
