"""Use a tensor of a calling graph in a called graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import popxl
from popart._internal import ir as _ir
from popxl import Graph, Tensor
from popxl_addons._moving import input_for

__all__ = ["is_subgraph", "route_tensor_into_graph"]

_Inputs = dict[_ir.GraphId, Tensor]
_Regions = Iterable[_ir.view.Region]
# popart._internal.ir.op.CallOp or LoopOp: classes that are made by name.
_CallingOp = Any


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


def called_graph_paths(parent_graph: Graph, subgraph: Graph) -> set[tuple[_ir.GraphId, ...]]:
    """Paths of calls from one graph to another: ids of graphs, both ends included."""
    start = _ir.GraphId(parent_graph.id)
    if parent_graph == subgraph:
        return {(start,)}
    return {
        (start, *path)
        for called in parent_graph.called_graphs
        for path in called_graph_paths(called, subgraph)
    }


def _calls(graph: Graph, called: Graph) -> Iterator[_CallingOp]:
    """Ops of a graph that call another one."""
    for op in graph._pb_graph.getOps():
        if called._pb_graph in op.getCalledGraphs():
            yield op


def _existing_inputs(op: _CallingOp, tensor: Tensor) -> set[int]:
    """Inputs of an op that have a tensor in every iteration."""
    first = 2 + op.getNumExplicitInputs() if op.opType() == "Loop" else 0
    inputs = op.getInputIndexMap().items()
    return {index for index, found in inputs if index >= first and found == tensor._pb_tensor}


def connect_call_op(
    op: _CallingOp, tensor: Tensor, input_tensors: _Inputs, modified: _Regions
) -> None:
    """Pass a tensor to a call.

    Args:
        op: the call.
        tensor: of the calling graph.
        input_tensors: input that stands for it, by graph; gets that of the called graph.
        modified: regions that the called graph writes; none if there are none.
    """
    called = Graph._from_pb(op.getCalledGraph())
    key = _ir.GraphId(called.id)
    if key not in input_tensors:
        with called:
            input_tensors[key] = input_for(tensor, by_ref=False)
    _connect(op, tensor, input_tensors[key], modified)


def connect_loop_op(
    op: _CallingOp, tensor: Tensor, input_tensors: _Inputs, modified: _Regions
) -> None:
    """Pass a tensor to every iteration of a loop. Arguments as of `connect_call_op`."""
    body = Graph._from_pb(op.getCalledGraph())
    key = _ir.GraphId(body.id)
    if key not in input_tensors:
        inner_id = body._create_tensor_id(tensor.name)
        op.addLoopInput(len(body.inputs), tensor.id, inner_id, False)
        input_tensors[key] = body.inputs[-1]
    _connect(op, tensor, input_tensors[key], modified)


def _connect(op: _CallingOp, tensor: Tensor, inner: Tensor, modified: _Regions) -> None:
    index = op.subgraphInToOpInIndex(0, op.getCalledGraph().getInputIndex(inner.id))
    op.connectInTensor(index, tensor.id)
    if regions := list(modified):
        op.addModified(index, regions)


def connect_tensor_to_ops_on_path(
    path: tuple[_ir.GraphId, ...],
    from_tensor: Tensor,
    input_tensors: _Inputs,
    modified: _Regions,
) -> None:
    """Pass a tensor along a path of calls. Arguments as of `connect_call_op`.

    Raises:
        TypeError: an op on the way is neither a call nor a loop.
    """
    ir, regions = from_tensor._value.graph.program.frontend, list(modified)
    graphs = [Graph._from_pb(ir._pb_ir.getGraph(graph_id)) for graph_id in path]
    tensor = from_tensor
    for graph, called in pairwise(graphs):
        for op in _calls(graph, called):
            if isinstance(op, _ir.op.LoopOp):
                connect_loop_op(op, tensor, input_tensors, regions)
            elif isinstance(op, _ir.op.CallOp):
                connect_call_op(op, tensor, input_tensors, regions)
            else:
                raise TypeError(f"{tensor} cannot be routed through {op.debugName()}")
        tensor = input_tensors[_ir.GraphId(called.id)]


def _known_inputs(paths: set[tuple[_ir.GraphId, ...]], tensor: Tensor) -> _Inputs:
    """Inputs on the paths that have the tensor at every call already, by graph."""
    ir = tensor._value.graph.program.frontend
    callers: dict[_ir.GraphId, set[_ir.GraphId]] = {}
    for path in paths:
        for caller, called in pairwise(path):
            callers.setdefault(called, set()).add(caller)
    known: _Inputs = {_ir.GraphId(tensor._value.graph.id): tensor}

    def find(graph_id: _ir.GraphId) -> Tensor | None:
        if graph_id in known:
            return known[graph_id]
        called = Graph._from_pb(ir._pb_ir.getGraph(graph_id))
        indices = set(range(len(called.inputs)))
        for caller in callers[graph_id]:
            outer = find(caller)
            for op in _calls(Graph._from_pb(ir._pb_ir.getGraph(caller)), called):
                indices &= set() if outer is None else _existing_inputs(op, outer)
        if indices:
            known[graph_id] = called.inputs[min(indices)]
        return known.get(graph_id)

    for path in paths:
        find(path[-1])
    return known


def route_tensor_into_graph(
    tensor: Tensor,
    graph: Graph | None = None,
    modified: bool | _Regions = False,
) -> Tensor:
    """Make a tensor usable in a graph that its own graph calls.

    Every graph on the way gets an input for it, unless it has one, and every call passes it; loops
    pass it to each iteration.

    Args:
        tensor: of the graph, or of one that calls it, directly or not.
        graph: where it is needed (default: the current graph).
        modified: whether what the graph writes to it reaches the tensor; or the regions of it.

    Returns:
        The tensor of `graph` that stands for it.

    Raises:
        ValueError: no path of calls leads from the tensor's graph to `graph`.
        TypeError: the path leads through an op that is neither a call nor a loop.
    """
    graph = graph or popxl.gcg()
    if tensor in graph:
        return tensor
    source = tensor._value.graph
    paths = called_graph_paths(source.program.frontend._graph(source), graph)
    if not paths:
        raise ValueError(f"{tensor} is not in the graph {graph} and is not in a known parent graph")
    if isinstance(modified, bool):
        modified = [_ir.view.Region.getFull(tensor.shape)] if modified else []
    regions, inputs = list(modified), _known_inputs(paths, tensor)
    for path in sorted(paths):
        connect_tensor_to_ops_on_path(path, tensor, inputs, regions)
    return inputs[_ir.GraphId(graph.id)]
