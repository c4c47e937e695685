"""Gradients that compute activations again instead of keeping them."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.transforms import ExpectedConnectionType, GradGraphInfo
from popxl_addons._grad_info import grad_info as make_grad_info
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.utils import suffix_graph_name

__all__ = ["add_recompute_inputs", "recompute_graph"]

_Inputs = dict[popxl.Tensor, popxl.Tensor]


def _input_like(tensor: popxl.Tensor, by_ref: bool = False) -> popxl.Tensor:
    return popxl.graph_input(
        tensor.shape, tensor.dtype, tensor.name, by_ref, meta_shape=tensor.meta_shape
    )


def add_recompute_inputs(
    grad_info: GradGraphInfo,
) -> tuple[list[tuple[popxl.Tensor, str]], _Inputs, _Inputs]:
    """Inputs of the current graph for a gradient that computes its forward graph again.

    First those that the gradient graph expects: gradients, and forward tensors that are inputs of
    the forward graph. Then the other inputs of the forward graph, sorted by name.

    Returns:
        What the new inputs stand for: (forward tensor, "Fwd" or "FwdGrad"); then the new inputs by
        the forward graph's inputs; then by those of the gradient graph's that are gradients.
    """
    forward = grad_info.forward_graph
    connections: list[tuple[popxl.Tensor, str]] = []
    of_forward: _Inputs = {}
    of_gradient: _Inputs = {}
    for expected, tensor in zip(grad_info.expected_inputs, grad_info.graph.inputs, strict=False):
        fwd_tensor, kind = expected.fwd_tensor, expected.connection_type
        if kind is ExpectedConnectionType.FwdGrad:
            of_gradient[tensor] = _input_like(tensor)
        elif fwd_tensor in forward.inputs:
            of_forward[fwd_tensor] = _input_like(fwd_tensor)
        else:
            continue
        connections.append((fwd_tensor, kind.name))
    for tensor in sorted(set(forward.inputs) - set(of_forward), key=lambda t: t.name):
        of_forward[tensor] = _input_like(tensor)
        connections.append((tensor, ExpectedConnectionType.Fwd.name))
    return connections, of_forward, of_gradient


def recompute_graph(grad_graph: GraphWithNamedArgs) -> GraphWithNamedArgs:
    """A gradient graph that calls the forward graph first, so that no activation is kept.

    Args:
        grad_graph: a graph with gradient information.

    Returns:
        A graph whose inputs are those of :func:`add_recompute_inputs`, then the further inputs of
        `grad_graph` (accumulators), sorted by name; with its named inputs and new gradient
        information.

    Raises:
        AttributeError: `grad_graph` has no gradient information.
    """
    info = grad_graph.grad_graph_info
    forward, gradient = info.forward_graph, grad_graph.graph
    graph = gradient.ir.create_empty_graph(suffix_graph_name(gradient.name, "recomp"))
    with graph, popxl.in_sequence():
        connections, of_forward, given = add_recompute_inputs(info)
        further = sorted(gradient.inputs[len(info.expected_inputs) :], key=lambda t: t.name)
        given.update((t, _input_like(t, t in gradient._by_ref_inputs)) for t in further)
        call = ops.call_with_info(forward, inputs_dict=of_forward)
        for tensor, activation in info.inputs_dict(call).items():
            given[tensor] = activation
        for output in ops.call(gradient, inputs_dict=given):
            popxl.graph_output(output)
    by_input = {**given, **_named_inputs(info, of_forward)}
    return GraphWithNamedArgs(
        graph,
        grad_graph.args.remap(by_input),
        make_grad_info(forward, graph, connections, info.outputs),
    )


def _named_inputs(info: GradGraphInfo, of_forward: _Inputs) -> _Inputs:
    """New inputs by those of the gradient graph that are inputs of the forward graph."""
    pairs = zip(info.graph.inputs, info.inputs, strict=False)
    return {tensor: of_forward[forward] for tensor, forward in pairs if forward in of_forward}
