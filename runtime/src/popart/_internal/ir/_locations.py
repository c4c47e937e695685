"""Where tensors lie on an IPU. Recorded only: no number depends on it."""

from __future__ import annotations

from enum import Enum, auto

__all__ = [
    "ExecutionContext",
    "ReplicatedTensorSharding",
    "TensorLocation",
    "TensorStorage",
    "TileSet",
]


class TensorStorage(Enum):
    """On-chip or remote memory."""

    OnChip = auto()
    OffChip = auto()


class ReplicatedTensorSharding(Enum):
    """Whether replicas keep only a shard."""

    Off = auto()
    On = auto()


class TileSet(Enum):
    """The tiles that run an op."""

    Compute = auto()
    IO = auto()
    Undefined = auto()
    N = auto()


class ExecutionContext(Enum):
    """The program fragment that an op belongs to."""

    Normal = auto()
    AccumulateOuterFragment = auto()
    WeightsFromHostFragment = auto()
    WeightsToHostFragment = auto()
    OptimizerFromHostFragment = auto()
    Subgraph = auto()


class TensorLocation:
    """A storage and a sharding choice."""

    def __init__(
        self,
        storage: TensorStorage = TensorStorage.OnChip,
        replicated_tensor_sharding: ReplicatedTensorSharding = ReplicatedTensorSharding.Off,
    ) -> None:
        self._storage = storage
        self._sharding = replicated_tensor_sharding

    @property
    def storage(self) -> TensorStorage:
        """On-chip or remote."""
        return self._storage

    @property
    def replicated_tensor_sharding(self) -> ReplicatedTensorSharding:
        """On or off."""
        return self._sharding
