"""Where tensors lie on an IPU. Recorded only: no number depends on it."""

from popart._internal.ir import (
    ExecutionContext,
    ReplicatedTensorSharding,
    TensorLocation,
    TensorStorage,
    TileSet,
)

__all__ = [
    "ExecutionContext",
    "ReplicatedTensorSharding",
    "TensorLocation",
    "TensorStorage",
    "TileSet",
]
