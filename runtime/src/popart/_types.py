"""Enums and small records of PopART that programs name. They carry values and do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class AnchorReturnType:
    """Which values of an output a run returns."""

    def __init__(self, artString: str = "All", returnPeriod: int = 0) -> None:
        self.artString = artString
        self.returnPeriod = returnPeriod


class CommGroupType(Enum):
    """How older programs named groups of replicas."""

    All = auto()
    Consecutive = auto()
    Orthogonal = auto()
    Ungrouped = auto()


@dataclass
class CommGroup:
    """A group type and size."""

    type: CommGroupType = CommGroupType.All
    replicaGroupSize: int = 0


class ReductionType(Enum):
    """Reductions of losses."""

    Sum = auto()
    Mean = auto()
    NoReduction = auto()


class VariableRetrievalMode(Enum):
    """What reading a variable returns."""

    OnePerGroup = auto()
    AllReduceReplicas = auto()
    AllReplicas = auto()


@dataclass
class VariableSettings:
    """Replica groups and retrieval mode of a variable."""

    sharedVariableDomain: Any = field(default_factory=CommGroup)
    retrievalMode: VariableRetrievalMode = VariableRetrievalMode.OnePerGroup


class VirtualGraphMode(Enum):
    """How ops are assigned to IPUs."""

    Off = auto()
    Manual = auto()
    Auto = auto()
    ExecutionPhases = auto()


class SyntheticDataMode(Enum):
    """Whether host data are replaced by made-up ones."""

    Off = auto()
    Zeros = auto()
    RandomNormal = auto()
    RandomUniform = auto()


class DataType(Enum):
    """Element types."""

    UINT8 = auto()
    INT8 = auto()
    UINT16 = auto()
    INT16 = auto()
    INT32 = auto()
    INT64 = auto()
    UINT32 = auto()
    UINT64 = auto()
    BOOL = auto()
    FLOAT = auto()
    FLOAT16 = auto()
    BFLOAT16 = auto()
    DOUBLE = auto()
    COMPLEX64 = auto()
    COMPLEX128 = auto()
    STRING = auto()
    FLOAT8_143 = auto()
    FLOAT8_152 = auto()


class DataFlow:
    """Batches per step and the outputs that are returned."""

    def __init__(
        self, batchesPerStep: int = 0, anchors: Mapping[str, AnchorReturnType] | None = None
    ) -> None:
        self._batches_per_step = batchesPerStep
        self._anchors = dict(anchors or {})

    def batchesPerStep(self) -> int:
        """Batches per step."""
        return self._batches_per_step

    def anchors(self) -> list[str]:
        """Ids of the returned tensors."""
        return list(self._anchors)


class DeviceInfo:
    """A device that a session may run on. Devices are shared: attaching only says so."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._attached = False

    @property
    def isAttached(self) -> bool:
        """Whether :meth:`attach` was called."""
        return self._attached

    def attach(self) -> bool:
        """Always possible."""
        self._attached = True
        return True

    def detach(self) -> None:
        """Undo :meth:`attach`."""
        self._attached = False


class DeviceManager:
    """Finds devices. There is one, which every request gets."""

    def createCpuDevice(self) -> DeviceInfo:
        """The device of this process."""
        return DeviceInfo()

    def createIpuModelDevice(self, options: Mapping[str, Any] | None = None) -> DeviceInfo:
        """The device of this process."""
        return DeviceInfo()

    def acquireAvailableDevice(self, *args: Any, **kwargs: Any) -> DeviceInfo:
        """The device of this process."""
        device = DeviceInfo()
        device.attach()
        return device

    def tryAcquireAvailableDevice(self, *args: Any, **kwargs: Any) -> DeviceInfo:
        """The device of this process."""
        return self.acquireAvailableDevice()


class PyWeightsIO:
    """Host arrays by tensor id."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.weights = dict(weights)


class PyStepIO:
    """Input and output arrays of a run by tensor id."""

    def __init__(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)
