"""Remote code loading: hints of the SDK without effect on values."""

from __future__ import annotations

from typing import Literal, NoReturn

from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.ops.utils import _create_op
from popxl_torch.ir.opdef import OpDef, define

CODE_LOCATION = Literal["executable", "compute_buffer", "io_buffer"]
TO_IR_ENUM_MAP = {
    "io_buffer": "Buffer",
    "compute_buffer": "Buffer",
    "executable": "ExecutableMemory",
}

define(OpDef("RemoteCodeLoad", lambda ins, attrs: [], effect=True))


def remote_code_load(graph: Graph, destination: CODE_LOCATION) -> None:
    """Hint to load a graph's code from remote memory. No value depends on it.

    Args:
        graph: any but the current one.
        destination: ``"executable"``.

    Raises:
        NotImplementedError: a destination other than ``"executable"``.
        ValueError: the graph is the one that the op sits in.
    """
    if destination != "executable":
        raise NotImplementedError(f"remote_code_load to {destination!r} is not supported.")
    if get_current_context().graph == graph:
        raise ValueError(f"Graph {graph.id} cannot load its own code.")
    _create_op("RemoteCodeLoad", [], {"destination": destination}, graphs=(graph._record,))


def code_copy(graph: Graph, source: CODE_LOCATION, destination: CODE_LOCATION) -> NoReturn:
    """Never available.

    Raises:
        NotImplementedError: always, as in PopXL.
    """
    raise NotImplementedError("code_copy is not available.")
