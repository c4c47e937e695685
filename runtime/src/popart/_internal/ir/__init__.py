"""Classes and enums of PopART's low level that programs name, and their ops by class.

Nothing here computes: it is a view of the program that ``popxl`` builds.
"""

from popart._internal.ir import op, patterns, view
from popart._internal.ir._create import append_op, create_op_in_graph
from popart._internal.ir._handles import Graph, Ir, Op, Tensor
from popart._internal.ir._locations import (
    ExecutionContext,
    ReplicatedTensorSharding,
    TensorLocation,
    TensorStorage,
    TileSet,
)
from popart._internal.ir._records import (
    BwdGraphInfo,
    ExpectedConnection,
    ExpectedConnectionType,
    GraphId,
    LocationInfo,
    NumInputs,
    OperatorIdentifier,
    Settings,
    TensorInfo,
    TensorType,
    data_type,
)
from popart._internal.ir._rewrite import TopoCons, list_as_one
from popart._options import SessionOptions
from popart._types import (
    CommGroup,
    CommGroupType,
    DataType,
    SyntheticDataMode,
    VariableRetrievalMode,
    VariableSettings,
    VirtualGraphMode,
)

__all__ = [
    "BwdGraphInfo",
    "CommGroup",
    "CommGroupType",
    "DataType",
    "ExecutionContext",
    "ExpectedConnection",
    "ExpectedConnectionType",
    "Graph",
    "GraphId",
    "Ir",
    "LocationInfo",
    "NumInputs",
    "Op",
    "OperatorIdentifier",
    "ReplicatedTensorSharding",
    "SessionOptions",
    "Settings",
    "SyntheticDataMode",
    "Tensor",
    "TensorInfo",
    "TensorLocation",
    "TensorStorage",
    "TensorType",
    "TileSet",
    "TopoCons",
    "VariableRetrievalMode",
    "VariableSettings",
    "VirtualGraphMode",
    "addScope",
    "append_op",
    "create_op_in_graph",
    "data_type",
    "list_as_one",
    "op",
    "patterns",
    "removeScope",
    "view",
]


def addScope(graph: Graph, name: str) -> str:
    """The id that ``name`` has inside ``graph``."""
    return f"{graph.id}/{name}" if graph.id else name


def removeScope(graph: Graph, tensor_id: str) -> str:
    """``tensor_id`` without the graph's scope."""
    return tensor_id.removeprefix(f"{graph.id}/") if graph.id else tensor_id
