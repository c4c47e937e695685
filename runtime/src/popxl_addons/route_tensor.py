"""Use a tensor of a calling graph in a called graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from popxl import Graph, Tensor

__all__ = ["is_subgraph", "route_tensor_into_graph"]


def is_subgraph(parent: Graph, subgraph: Graph) -> bool:
    """Whether `subgraph` is `parent` or is called by it, directly or not."""
    seen, todo = set(), [parent]
    while todo:
        graph = todo.pop()
        if graph == subgraph:
            return True
        if graph not in seen:
            seen.add(graph)
            todo.extend(graph.called_graphs)
    return False


def called_graph_paths(parent_graph: Graph, subgraph: Graph) -> set[tuple[Any, ...]]:
    """Paths of calls from one graph to another. Not implemented yet."""
    raise NotImplementedError("popxl_addons.route_tensor.called_graph_paths: not implemented yet")


def connect_call_op(
    op: Any, tensor: Tensor, input_tensors: dict[Any, Tensor], modified: Iterable[Any]
) -> None:
    """Route a tensor through a call op. Not implemented yet."""
    raise NotImplementedError("popxl_addons.route_tensor.connect_call_op: not implemented yet")


def connect_loop_op(
    op: Any, tensor: Tensor, input_tensors: dict[Any, Tensor], modified: Iterable[Any]
) -> None:
    """Route a tensor through a repeat op. Not implemented yet."""
    raise NotImplementedError("popxl_addons.route_tensor.connect_loop_op: not implemented yet")


def connect_tensor_to_ops_on_path(
    path: tuple[Any, ...],
    from_tensor: Tensor,
    input_tensors: dict[Any, Tensor],
    modified: Iterable[Any],
) -> None:
    """Route a tensor through the ops of a path. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.route_tensor.connect_tensor_to_ops_on_path: not implemented yet"
    )


def route_tensor_into_graph(
    tensor: Tensor, graph: Graph | None = None, modified: bool | Iterable[Any] = False
) -> Tensor:
    """Make a tensor usable in a graph that its own graph calls. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.route_tensor.route_tensor_into_graph: not implemented yet"
    )
