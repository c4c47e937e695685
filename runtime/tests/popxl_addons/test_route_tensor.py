"""Tensors of calling graphs used in called graphs."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import is_subgraph, route_tensor_into_graph
from popxl_addons.route_tensor import called_graph_paths

from runtime.tests.popxl_addons.conftest import Run


def adder(ir: popxl.Ir) -> popxl.Graph:
    """x -> x + 1."""
    return ir.create_graph(lambda x: x + 1.0, popxl.TensorSpec((2,), popxl.float32))


def test_a_tensor_of_the_graph_is_itself(ir: popxl.Ir):
    t = popxl.constant(1.0)
    assert route_tensor_into_graph(t) is t
    assert route_tensor_into_graph(t, ir.main_graph) is t


def test_through_a_call(ir: popxl.Ir, run: Run):
    graph = adder(ir)
    x, t = popxl.variable(np.zeros(2, np.float32)), popxl.variable(np.full(2, 5.0, np.float32))
    outputs = [ops.call(graph, x)[0], ops.call(graph, t)[0]]
    with graph:
        inner = route_tensor_into_graph(t)
        assert inner in graph.inputs
        assert route_tensor_into_graph(t) == inner
        assert len(graph.inputs) == 2
        popxl.graph_output(graph.outputs[0] * inner)
        graph._pb_graph.removeOutput(0)
    first, second = run(outputs)
    np.testing.assert_array_equal(first, [5, 5])
    np.testing.assert_array_equal(second, [30, 30])


@pytest.mark.parametrize("modified", [False, True])
def test_through_loops_and_calls_on_every_path(ir: popxl.Ir, modified: bool):
    """main -> loop -> middle -> graph, and main -> graph; each run of the graph adds 1 to t."""
    graph = adder(ir)
    spec = popxl.TensorSpec((2,), popxl.float32)
    middle = ir.create_graph(lambda x: ops.call(graph, x), spec)
    x, t = popxl.variable(np.zeros(2, np.float32)), popxl.variable(np.full(2, 5.0, np.float32))
    with popxl.in_sequence():
        (a,) = ops.repeat(middle, 3, x)
        ops.call(graph, a)
        assert len(called_graph_paths(ir.main_graph, graph)) == 2
        inner = route_tensor_into_graph(t, graph, modified)
        with graph:
            ops.add_(inner, popxl.constant(1.0))
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    np.testing.assert_array_equal(session.get_tensor_data(t), [9, 9] if modified else [5, 5])


def test_an_input_that_every_call_has_is_used(ir: popxl.Ir):
    spec = popxl.TensorSpec((2,), popxl.float32)
    graph = ir.create_graph(lambda x, y: x + y, spec, spec)
    x, t = (popxl.variable(np.zeros(2, np.float32)) for _ in range(2))
    ops.call(graph, x, t)
    ops.call(graph, t, t)
    assert route_tensor_into_graph(t, graph) == graph.inputs[1]
    assert route_tensor_into_graph(x, graph) == graph.inputs[2]


def test_what_a_loop_carries_is_another_tensor(ir: popxl.Ir, run: Run):
    """x is carried, so its value before the loop needs an input of its own."""
    graph = adder(ir)
    x = popxl.variable(np.full(2, 3.0, np.float32))
    (y,) = ops.repeat(graph, 2, x)
    inner = route_tensor_into_graph(x, graph)
    assert inner != graph.inputs[0]
    with graph:
        popxl.graph_output(graph.outputs[0] * inner)
    graph._pb_graph.removeOutput(0)
    (found,) = run([y])
    np.testing.assert_array_equal(found, ((3.0 + 1) * 3 + 1) * 3 * np.ones(2))


def test_no_path(ir: popxl.Ir):
    graph, t = adder(ir), popxl.variable(1.0)
    with pytest.raises(ValueError, match=r"is not in the graph .* is not in a known parent graph"):
        route_tensor_into_graph(t, graph)
    with graph, pytest.raises(ValueError, match="is not in a known parent graph"):
        route_tensor_into_graph(t)


def test_branches_cannot_be_routed_through(ir: popxl.Ir):
    graph, other = adder(ir), adder(ir)
    x, t = popxl.variable(np.zeros(2, np.float32)), popxl.variable(np.ones(2, np.float32))
    ops.conditional(popxl.constant(True), graph, other, [x], [x])
    assert is_subgraph(ir.main_graph, graph)
    with pytest.raises(TypeError, match="If"):
        route_tensor_into_graph(t, graph)
