"""Repeat a whole graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import popxl
from popart._internal.ir import ExecutionContext
from popxl import ops
from popxl.tensor import Constant
from popxl_addons._moving import clone_ops, input_for, replace_ops, sources


def repeat_graph(graph: popxl.Graph, repeat_count: int) -> popxl.Graph:
    """Move the ops of a graph into a new one and call that in a loop, in place.

    Variables and other tensors that the ops find are passed by reference, so what they write is
    there in the next iteration. Outputs of `graph` are those of the last iteration. Ops that run
    when weights are sent or fetched stay outside of the loop.

    Args:
        graph: usually the main graph, complete.
        repeat_count: iterations; up to 1 there is nothing to do.

    Returns:
        The new graph, or `graph`.
    """
    if repeat_count <= 1:
        return graph
    moved = [
        op
        for op in graph._pb_graph.getOpSchedule()
        if op.getSettings().executionContext == ExecutionContext.Normal
    ]
    found, outputs = sources(moved), graph.outputs
    made = {tensor.id for op in moved for tensor in op.getOutputTensors()}
    # A loop hands results to the caller as it hands them to the next iteration.
    results = [t for t in dict.fromkeys(outputs) if t.id in made]
    specs = [(t.shape, t.dtype, t.meta_shape) for t in results]
    body = graph.ir.create_empty_graph(f"{graph.name or 'main'}_repeated")
    with body:
        for t in results:
            input_for(t, by_ref=False)
        inputs = {i: input_for(t, not isinstance(t, Constant)) for i, t in found.items()}
    tensors = dict(inputs)
    clones = clone_ops(moved, body, tensors)
    with body:
        for t in results:
            popxl.graph_output(tensors[t.id])
    with graph, popxl.in_sequence():
        first = [ops.init(shape, dtype, meta_shape=meta) for shape, dtype, meta in specs]
        given = {inputs[i]: t for i, t in found.items()}
        loop = ops.repeat_with_info(body, repeat_count, *first, inputs_dict=given)
    new = {t.id: last for t, last in zip(results, loop.outputs, strict=True)}
    _replace_outputs(graph, outputs, new)
    replace_ops(loop._op, clones)
    return body


def _replace_outputs(
    graph: popxl.Graph, outputs: Sequence[popxl.Tensor], new: Mapping[str, popxl.Tensor]
) -> None:
    for _ in outputs:
        graph._pb_graph.removeOutput(0)
    with graph:
        for t in outputs:
            popxl.graph_output(new.get(t.id, t))
