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
    """`lhs` @ `rhs`, a scipy CSR matrix baked in. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.ops.static_sparse_ops.dense_const_sparse_matmul is not implemented yet"
    )
