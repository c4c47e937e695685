"""Stand-ins for the few names of PopART that programs touch: exceptions, version, options."""

import logging

from popart import session
from popart._options import SessionOptions
from popart._types import (
    AnchorReturnType,
    CommGroup,
    CommGroupType,
    DataFlow,
    DataType,
    DeviceInfo,
    DeviceManager,
    PyStepIO,
    PyWeightsIO,
    ReductionType,
    SyntheticDataMode,
    VariableRetrievalMode,
    VariableSettings,
    VirtualGraphMode,
)
from popart.session import InferenceSession
from popxl_torch.ir.errors import (
    popart_exception,
    popart_internal_exception,
    popart_runtime_error,
    poplar_application_runtime_error,
    poplar_exception,
    poplar_recoverable_runtime_error,
    poplar_runtime_error,
    poplar_system_runtime_error,
    poplar_unknown_runtime_error,
    poplar_unrecoverable_runtime_error,
    poplibs_exception,
)

__all__ = [
    "AnchorReturnType",
    "CommGroup",
    "CommGroupType",
    "DataFlow",
    "DataType",
    "DeviceInfo",
    "DeviceManager",
    "InferenceSession",
    "PyStepIO",
    "PyWeightsIO",
    "ReductionType",
    "SessionOptions",
    "SyntheticDataMode",
    "VariableRetrievalMode",
    "VariableSettings",
    "VirtualGraphMode",
    "getLogger",
    "popart_exception",
    "popart_internal_exception",
    "popart_runtime_error",
    "poplar_application_runtime_error",
    "poplar_exception",
    "poplar_recoverable_runtime_error",
    "poplar_runtime_error",
    "poplar_system_runtime_error",
    "poplar_unknown_runtime_error",
    "poplar_unrecoverable_runtime_error",
    "poplibs_exception",
    "session",
    "versionString",
]


def versionString() -> str:
    """Names the engine and the PopART version whose surface it provides."""
    return "popxl-torch 0.1.0 (PopART 3.4 surface)"


def getLogger(name: str = "popart") -> logging.Logger:
    """A logger of Python's logging module."""
    return logging.getLogger(name)
