"""Gradients of graphs, and running means of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import popxl
from popxl import ops
from popxl.transforms import GradGraphInfo
from popxl_addons._grad_info import grad_info as make_grad_info
from popxl_addons.dot_tree import sanitise
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.graph_common import (
    CalledGraphsGradInfo,
    GradGraphInfoLike,
    called_graphs_info,
    graph_of,
)
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.variable_factory import NamedVariableFactories, add_variable_input

__all__ = ["autodiff", "autodiff_with_accumulation"]


def autodiff(
    graph: GraphWithNamedArgs | popxl.Graph,
    grads_provided: Iterable[popxl.Tensor] | None = None,
    grads_required: Iterable[popxl.Tensor] | None = None,
    called_graphs_grad_info: Mapping[Any, GradGraphInfoLike] | None = None,
) -> GraphWithNamedArgs:
    """The graph of the gradients. Adds outputs to `graph`: differentiate, then call.

    Args:
        graph: the forward graph.
        grads_provided: outputs with an upstream gradient (default all).
        grads_required: inputs to differentiate by (default all).
        called_graphs_grad_info: gradients of called graphs, beside and before those that `graph`
            knows.

    Returns:
        A graph whose inputs are the upstream gradients, then forward tensors, and whose outputs
        are the gradients of `grads_required`; with gradient information.

    Raises:
        popart_exception: see `popxl.transforms.autodiff`.
    """
    known: dict[popxl.Graph, GradGraphInfo] = {}
    if isinstance(graph, GraphWithNamedArgs):
        known = called_graphs_info(graph.called_graphs_grad_info)
    known.update(called_graphs_info(called_graphs_grad_info))
    info = popxl.transforms.autodiff(graph_of(graph), grads_provided, grads_required, known)
    assert isinstance(info, GradGraphInfo)
    return GraphWithNamedArgs.from_grad_graph(info)


def autodiff_with_accumulation(
    graph: GraphWithNamedArgs,
    tensors_to_accumulate_grads: Iterable[popxl.Tensor],
    grads_provided: Iterable[popxl.Tensor] | None = None,
    grads_required: Iterable[popxl.Tensor] | None = None,
    called_graphs_grad_info: CalledGraphsGradInfo | None = None,
    replica_groupings: NamedReplicaGrouping | None = None,
) -> tuple[NamedVariableFactories, GraphWithNamedArgs]:
    """The graph of the gradients, with running means of some instead of outputs.

    Args:
        graph: the forward graph.
        tensors_to_accumulate_grads: inputs whose gradients are accumulated.
        grads_provided: outputs with an upstream gradient (default all).
        grads_required: inputs whose gradients are outputs (default none).
        called_graphs_grad_info: see `autodiff`.
        replica_groupings: of the accumulators, by the names of their tensors in `graph.args`
            (default all replicas in one group).

    Returns:
        Factories of the accumulators `accum.<name>` and of `mean_accum_counter`, and the graph
        with its inputs for them under the same names. Set the counter to 0 to start again. (quirk)
        Its gradient information still lists the accumulated tensors among the outputs.
    """
    tensors = list(tensors_to_accumulate_grads)
    required = [*(grads_required or ()), *tensors]
    grad_graph = autodiff(graph, grads_provided, required, called_graphs_grad_info)
    positions = [required.index(tensor) for tensor in tensors]
    names = {tensor: key for key, tensor in graph.args.to_dict().items()}
    factories, inputs = NamedVariableFactories(), NamedTensors()
    gradients = grad_graph.graph.outputs
    with grad_graph.graph, popxl.in_sequence():
        counter, factory = add_variable_input(
            "mean_accum_counter", _zeros((), popxl.float32), by_ref=True
        )
        factories.insert("mean_accum_counter", factory)
        inputs.insert("mean_accum_counter", counter)
        for tensor, position in zip(tensors, positions, strict=True):
            name = names.get(tensor) or sanitise(tensor.name)
            grouping = _grouping(replica_groupings, name)
            key = f"accum.{name}"
            accumulator, factory = add_variable_input(
                key, _zeros(tensor.shape, tensor.dtype), by_ref=True, replica_grouping=grouping
            )
            factories.insert(key, factory, overwrite=True)
            inputs.insert(key, accumulator, overwrite=True)
            ops.var_updates.accumulate_mean_(accumulator, gradients[position], counter)
        ops.var_updates.accumulate_(counter, popxl.constant(1, popxl.float32))
    for position in sorted(set(positions), reverse=True):
        grad_graph.graph._pb_graph.removeOutput(position)
    grad_graph.args = inputs
    return factories, grad_graph


def _zeros(shape: tuple[int, ...], dtype: popxl.dtype) -> popxl.tensor.HostTensor:
    return lambda: np.zeros(shape, dtype.as_numpy())  # type: ignore[return-value]


def _grouping(groupings: NamedReplicaGrouping | None, name: str) -> popxl.ReplicaGrouping | None:
    return None if groupings is None else groupings.to_dict().get(name)


def remap_grad_info(
    grad_info: GradGraphInfo, forward_graph: popxl.Graph, backward_graph: popxl.Graph
) -> GradGraphInfo:
    """The same gradient information for other graphs.

    Args:
        grad_info: of graphs whose inputs and outputs correspond, by position.
        forward_graph: takes the place of the forward graph.
        backward_graph: takes the place of the gradient graph.
    """
    old = grad_info.forward_graph

    def moved(tensor: popxl.Tensor) -> popxl.Tensor:
        if tensor in old.inputs:
            return forward_graph.inputs[old.inputs.index(tensor)]
        return forward_graph.outputs[old.outputs.index(tensor)]

    inputs = [(moved(c.fwd_tensor), c.connection_type.name) for c in grad_info.expected_inputs]
    outputs = [moved(tensor) for tensor in grad_info.outputs]
    return make_grad_info(forward_graph, backward_graph, inputs, outputs)
