"""Kernels: one factory per op kind, grouped in families. Importing this package loads them all."""

from popxl_torch.kernels import elementwise, indexing, linalg, nn, printing, reduce, shape
from popxl_torch.kernels.registry import KernelEntry, Site, kernel, kernel_entry, kernel_kinds

__all__ = [
    "KernelEntry",
    "Site",
    "elementwise",
    "indexing",
    "kernel",
    "kernel_entry",
    "kernel_kinds",
    "linalg",
    "nn",
    "printing",
    "reduce",
    "shape",
]
