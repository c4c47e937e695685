"""The torch dtypes that hold PopXL's. Torch computes little in unsigned types: wider ones do."""

from __future__ import annotations

import torch

_STORAGE: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "float8_143": torch.uint8,
    "float8_152": torch.uint8,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


def storage_dtype(name: str) -> torch.dtype:
    """The torch dtype that holds a tensor of the PopXL dtype ``name``."""
    return _STORAGE[name]
