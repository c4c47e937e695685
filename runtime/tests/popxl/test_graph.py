"""popxl.Graph: contents, lookups, hooks."""

from __future__ import annotations

import popart
import popxl
import pytest
from popxl import ops


def test_constructor():
    with pytest.raises(TypeError):
        popxl.Graph()


def test_contents_are_counted(main: popxl.Graph):
    w = popxl.variable([1.0, 2.0])
    c = popxl.constant([3.0, 4.0])
    y = w + c
    assert main.tensors == (w, c, y)
    assert main.variables == (w,)
    assert main.constants == (c,)


def test_what_helpers_add_is_counted(main: popxl.Graph):
    w = popxl.variable([1.0, 2.0])
    w + 1.0  # a constant and the sum
    assert len(main.tensors) == 3
    w[0]  # a slice and a reshape
    assert len(main.tensors) == 5
    ops.log2(w)  # a constant, two logarithms, a quotient
    assert len(main.tensors) == 9
    assert len(main.constants) == 2


def test_a_call_adds_one_tensor_per_output(ir: popxl.Ir, main: popxl.Graph):
    x = popxl.variable([1.0])

    def fn(a):
        return a + 1.0, a

    graph = ir.create_graph(fn, x)
    assert main.tensors == (x,)
    ops.call(graph, x)
    assert len(main.tensors) == 3
    assert len(graph.tensors) == 3


def test_streams_are_tensors_of_the_main_graph(ir: popxl.Ir):
    with ir.create_empty_graph():
        stream = popxl.h2d_stream((2,), popxl.float32, "x")
    tensor = ir.main_graph.get_tensor(stream.tensor_id)
    assert (tensor.id, tensor.shape, tensor.dtype) == ("x", (2,), popxl.float32)
    assert ir.main_graph.tensors == (tensor,)


def test_inputs_by_name_keep_name_scopes(ir: popxl.Ir):
    graph = ir.create_empty_graph("g")
    with graph:
        x = popxl.graph_input((), popxl.float32, "x")
        with popxl.name_scope("a"):
            y = popxl.graph_input((), popxl.float32, "x")
    assert graph.inputs_by_name == {"x": x, "a/x": y}
    assert list(graph.inputs_by_name) == ["x", "a/x"]
    assert y.id == "g_subgraph(0)/a/x"


def test_lookups_return_the_same_objects(ir: popxl.Ir):
    graph = ir.create_graph(lambda x: x + 1, popxl.TensorSpec((), popxl.int32))
    assert graph.inputs[0] is graph.inputs[0]
    assert graph.get_tensor(graph.outputs[0].id) is graph.outputs[0]


def test_get_tensor_of_an_unknown_id(main: popxl.Graph):
    with pytest.raises(popart.popart_exception):
        main.get_tensor("nothing")


def test_membership_goes_by_id(ir: popxl.Ir):
    other = popxl.Ir()
    with ir.main_graph as graph:
        x = popxl.variable(1, name="x")
    with other.main_graph:
        same_id = popxl.variable(2, name="x")
        different = popxl.variable(2, name="y")
    assert x in graph
    assert same_id in graph
    assert different not in graph
    with pytest.raises(TypeError):
        assert 3 in graph


def test_equality(ir: popxl.Ir):
    a, b = ir.create_empty_graph(), ir.create_empty_graph()
    assert a == a
    assert a != b
    assert len({a, b, a}) == 2
    assert ir.main_graph != popxl.Ir().main_graph
    with pytest.raises(TypeError):
        assert a == "a"


def test_repr(ir: popxl.Ir):
    assert repr(ir.create_empty_graph("g")) == "Graph[id=g_subgraph(0) name=g_subgraph(0)]"


def test_called_graphs_are_listed_once(ir: popxl.Ir, main: popxl.Graph):
    spec = popxl.TensorSpec((), popxl.int32)
    called, unused = (ir.create_graph(lambda x: x + 1, spec) for _ in range(2))
    x = popxl.variable(1)
    ops.call(called, x)
    ops.call(called, x)
    assert main.called_graphs == (called,)
    assert unused.called_graphs == ()
    assert main.main_graph is main


def test_entering_restores_after_an_exception(ir: popxl.Ir):
    with pytest.raises(KeyError), ir.main_graph:
        raise KeyError
    with pytest.raises(RuntimeError):
        popxl.gcg()


def test_hooks_of_a_graph(ir: popxl.Ir, main: popxl.Graph):
    sub = ir.create_empty_graph()
    seen = []
    handle = sub.register_op_created_hook(lambda op: seen.append(op.opType()))
    popxl.constant(1) + 1
    with sub:
        popxl.constant(1) + 1
    assert isinstance(handle, int)
    assert seen == ["Add"]
    sub.remove_op_created_hook(handle)
    with sub:
        popxl.constant(1) + 1
    assert seen == ["Add"]
    with pytest.raises(ValueError, match="handle"):
        sub.remove_op_created_hook(handle)


def test_by_ref_inputs(ir: popxl.Ir):
    graph = ir.create_empty_graph()
    with graph:
        a = popxl.graph_input((), popxl.int32, by_ref=True)
        popxl.graph_input((), popxl.int32)
    assert graph._by_ref_inputs == {a}


def test_graph_input(ir: popxl.Ir):
    with ir.create_empty_graph("g") as graph:
        a = popxl.graph_input([2, 3], popxl.float16)
        b = popxl.graph_input((2,), popxl.float16, meta_shape=(4,))
        c = popxl.graph_input(**popxl.TensorSpec((1,), popxl.int32, (3,)))
    assert graph.inputs == (a, b, c)
    assert (a.name, a.shape, a.meta_shape) == ("t", (2, 3), ())
    assert b.meta_shape == (4,)
    assert (c.shape, c.dtype, c.meta_shape) == ((1,), popxl.int32, (3,))


def test_graph_output_of_another_graph(ir: popxl.Ir):
    with ir.main_graph:
        x = popxl.variable(1)
    with ir.create_empty_graph(), pytest.raises(ValueError, match="not in the current Graph"):
        popxl.graph_output(x)


def test_tensor_by_ref_is_no_function():
    with pytest.raises(NotImplementedError):
        popxl.TensorByRef()


def test_low_level_handle_leads_back(ir: popxl.Ir):
    graph = ir.create_empty_graph()
    assert popxl.Graph._from_pb(graph._pb_graph) is graph
