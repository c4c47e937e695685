"""Kernels: one factory per op kind, grouped in families. Importing this package loads them all."""

from popxl_torch.kernels import (
    addons,
    collectives,
    elementwise,
    indexing,
    joined,
    linalg,
    loss,
    nn,
    printing,
    random,
    reduce,
    resample,
    shape,
    updates,
    views,
)
from popxl_torch.kernels.registry import KernelEntry, Site, kernel, kernel_entry, kernel_kinds

__all__ = [
    "KernelEntry",
    "Site",
    "addons",
    "collectives",
    "elementwise",
    "indexing",
    "joined",
    "kernel",
    "kernel_entry",
    "kernel_kinds",
    "linalg",
    "loss",
    "nn",
    "printing",
    "random",
    "reduce",
    "resample",
    "shape",
    "updates",
    "views",
]
