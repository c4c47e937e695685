"""Moving ops from one graph to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import popxl
from popart._internal import ir as _ir


def sources(ops: Iterable[_ir.Op]) -> dict[str, popxl.Tensor]:
    """Tensors that ops take and that none of them makes, by id, in order of first use."""
    ops = list(ops)
    made = {tensor.id for op in ops for tensor in op.getOutputTensors()}
    taken = {tensor.id: tensor for op in ops for tensor in op.getInputTensors()}
    return {i: popxl.Tensor._from_pb_tensor(t) for i, t in taken.items() if i not in made}


def clone_ops(
    ops: Iterable[_ir.Op], graph: popxl.Graph, tensors: dict[str, popxl.Tensor]
) -> dict[_ir.Op, _ir.Op]:
    """Clones of ops at the end of a graph, by the ops.

    Args:
        ops: of one graph, in order.
        graph: where to.
        tensors: tensors of `graph` by the ids of those they stand for. It has to hold the
            `sources` of the ops, and gets their outputs.
    """
    clones = {}
    for op in ops:
        clone = clones[op] = op.cloneIntoGraph(graph._pb_graph)
        for index, tensor in op.getInputIndexMap().items():
            clone.connectInTensor(index, tensors[tensor.id].id)
        for index, tensor in op.getOutputIndexMap().items():
            name = _ir.removeScope(op.getGraph(), tensor.id)
            clone.createAndConnectOutTensor(index, graph._create_tensor_id(name))
            tensors[tensor.id] = popxl.Tensor._from_pb_tensor(clone.outTensor(index))
        clone.setup()
    return clones


def replace_ops(caller: _ir.Op, clones: Mapping[_ir.Op, _ir.Op]) -> None:
    """Erase ops whose clones another op of the graph calls; it takes their place in the order."""
    graph = caller.getGraph()
    graph.topoCons().transferToSubgraph(caller, clones)
    for op in reversed(list(clones)):
        graph.eraseOp(op.id)


def input_for(tensor: popxl.Tensor, by_ref: bool) -> popxl.Tensor:
    """An input of the current graph like a tensor of another one."""
    return popxl.graph_input(
        tensor.shape, tensor.dtype, tensor.name, by_ref, meta_shape=tensor.meta_shape
    )
