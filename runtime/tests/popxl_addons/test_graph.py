"""Graphs with named inputs."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl_addons import BoundGraph, GraphWithNamedArgs, NamedTensors


def add(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
    return x + y


@pytest.fixture
def x(ir: popxl.Ir) -> popxl.Tensor:
    return popxl.variable(np.zeros(2, "float32"), name="data")


@pytest.fixture
def named(ir: popxl.Ir, x: popxl.Tensor) -> GraphWithNamedArgs:
    graph = ir.create_graph(add, x, x)
    return GraphWithNamedArgs(graph, NamedTensors(b=NamedTensors(y=graph.inputs[1])))


def test_bind_pairs_by_name_and_ignores_the_rest(named: GraphWithNamedArgs, x: popxl.Tensor):
    bound = named.bind(NamedTensors.from_dict({"b.y": x, "other": x}))
    assert bound.args == {named.graph.inputs[1]: x}
    (out,) = bound.call(x)
    assert out.shape == (2,)
    assert named.bind().args == {}


def test_a_missing_input_is_noticed_by_the_call(named: GraphWithNamedArgs, x: popxl.Tensor):
    with pytest.raises(ValueError, match="Not enough inputs"):
        named.call(x)


def test_more_can_be_bound_and_given(named: GraphWithNamedArgs, x: popxl.Tensor):
    a, b = named.graph.inputs
    bound = BoundGraph(named.graph).bind({a: x}).bind({b: x})
    assert bound.args == {a: x, b: x}
    info = bound.call_with_info()
    assert info.graph_to_parent(a) == x
    outputs = BoundGraph(named.graph, {a: x}).call(args={b: x})
    assert isinstance(outputs, tuple)
    assert len(outputs) == 1


def test_io_map(named: GraphWithNamedArgs, x: popxl.Tensor):
    a, b = named.graph.inputs
    outputs = named.call(x, x)
    mapping = named.bind(NamedTensors(b=NamedTensors(y=x))).subgraph_io_map(x, outs=outputs)
    assert mapping == {a: x, b: x, named.graph.outputs[0]: outputs[0]}


def test_numbers_become_constants(named: GraphWithNamedArgs, x: popxl.Tensor, ir: popxl.Ir):
    scalar = popxl.constant(1.0)
    graph = GraphWithNamedArgs(ir.create_graph(add, scalar, scalar))
    (out,) = graph.call(1, 2.5)
    assert out.dtype == popxl.float32


def test_copy_forgets_where_it_came_from(named: GraphWithNamedArgs):
    named.grad_graph_info = "info"
    named.autodiff_applied = True
    copy = named.copy()
    assert copy.graph is named.graph
    assert copy.args is not named.args
    assert copy.grad_graph_info == "info"
    assert not copy.autodiff_applied


def test_gradient_information(named: GraphWithNamedArgs):
    with pytest.raises(AttributeError, match="no grad_graph_info"):
        _ = named.grad_graph_info

    class Info:
        graph = named.graph

    grad = GraphWithNamedArgs.from_grad_graph(Info)
    assert grad.graph is named.graph
    assert grad.grad_graph_info is Info


def test_autodiff_arguments(named: GraphWithNamedArgs):
    with pytest.raises(ValueError, match="method is one of"):
        named.autodiff(method="magic")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="`from_module` is specified"):
        named.autodiff(method="build_grad")
    named.autodiff_applied = True
    with pytest.raises(RuntimeError, match="Autodiff has already been applied"):
        named.autodiff()


def test_schedule_in_text(named: GraphWithNamedArgs):
    text = named.print_schedule()
    lines = text.splitlines()
    assert lines[0].startswith("add_subgraph")
    assert "(b.y)" in text
    assert any("Add (" in line for line in lines)
    assert lines[-1].strip().startswith("Tensor[")
