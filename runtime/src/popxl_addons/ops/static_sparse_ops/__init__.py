"""Products with a constant sparse matrix."""

from popxl_addons.ops.static_sparse_ops.dense_sparse_matmul import (
    dense_const_sparse_matmul,
    random_sparse,
)

__all__ = [
    "dense_const_sparse_matmul",
    "random_sparse",
]
