"""Products of a dense matrix with a constant sparse one."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl

__all__ = ["dense_const_sparse_matmul", "random_sparse"]


def random_sparse(dense: np.ndarray, density: float = 0.5) -> np.ndarray:
    """Zero entries of `dense` in place, each kept with probability `density`, at least one."""
    # The global state, because programs seed it.
    keep = np.random.random_sample(dense.shape) < density  # noqa: NPY002
    if not keep.any():
        keep.flat[np.random.randint(dense.size)] = True  # noqa: NPY002
    dense[~keep] = 0
    return dense


def dense_const_sparse_matmul(lhs: popxl.Tensor, rhs: Any, output_cols: int) -> popxl.Tensor:
    """`lhs` @ `rhs`, with `rhs` a constant. Here it is held and multiplied as a dense matrix.

    Args:
        lhs: (m, k) or (1, m, k), float16 or float32.
        rhs: scipy CSR matrix (k, output_cols).
        output_cols: columns of `rhs`.

    Raises:
        RuntimeError: another dtype.
        ValueError: `rhs` has another number of columns.
    """
    if lhs.dtype not in (popxl.float16, popxl.float32):
        raise RuntimeError(f"dense_const_sparse_matmul: lhs is float16 or float32, got {lhs.dtype}")
    if rhs.shape[1] != output_cols:
        raise ValueError(f"dense_const_sparse_matmul: rhs is (k, {output_cols}), got {rhs.shape}")
    return lhs @ popxl.constant(rhs.toarray(), lhs.dtype, "sparse_rhs")
