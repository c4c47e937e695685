"""ops.call: binding of inputs, by value and by reference, call sites."""

# No `from __future__ import annotations`: by-reference inputs are found by their annotation.

from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from popxl import ops

from runtime.tests.popxl.programs import run

SPEC = popxl.TensorSpec((2,), popxl.float32)


def subtract(a, b):
    return a - b


def test_positions_and_dict(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    a, b = popxl.variable([5.0, 6.0]), popxl.variable([1.0, 2.0])
    graph = ir.create_graph(subtract, SPEC, SPEC)
    first, second = graph.inputs
    calls = [
        ops.call(graph, a, b),
        ops.call(graph, [a, b]),
        ops.call(graph, a, inputs_dict={second: b}),
        ops.call(graph, inputs_dict={second: b, first: a}),
        ops.call(graph, (t for t in (a, b)), []),
    ]
    assert all(isinstance(outputs, tuple) and len(outputs) == 1 for outputs in calls)
    for value in run(make_session, ir, *(outputs[0] for outputs in calls)):
        np.testing.assert_array_equal(value, [4.0, 4.0])


def test_no_outputs(ir: popxl.Ir, main: popxl.Graph):
    assert ops.call(ir.create_graph(lambda: None)) == ()


def test_values_become_constants_of_the_input_dtype(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    spec = popxl.TensorSpec((), popxl.int32)
    graph = ir.create_graph(subtract, spec, spec)
    (y,) = ops.call(graph, 1.5, inputs_dict={graph.inputs[1]: 3})
    assert [c.dtype for c in main.constants] == [popxl.int32, popxl.int32]
    (value,) = run(make_session, ir, y)
    assert value == -2


@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_arrays_are_unpacked_along_their_first_axis(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any, make: Any
):
    graph = ir.create_graph(subtract, SPEC, SPEC)
    rows = make([[5.0, 6.0], [1.0, 3.0]])
    (whole,) = ops.call(graph, rows)
    (wrapped,) = ops.call(graph, [rows[0]], inputs_dict={graph.inputs[1]: rows[1]})
    for value in run(make_session, ir, whole, wrapped):
        np.testing.assert_array_equal(value, [4.0, 3.0])


def test_a_0d_array_cannot_be_iterated(ir: popxl.Ir, main: popxl.Graph):
    graph = ir.create_graph(lambda a: a, popxl.TensorSpec((), popxl.float32))
    with pytest.raises(TypeError):
        ops.call(graph, np.array(1.0))
    ops.call(graph, [np.array(1.0)])


class TestErrors:
    @pytest.fixture
    def graph(self, ir: popxl.Ir) -> popxl.Graph:
        return ir.create_graph(subtract, SPEC, SPEC)

    def test_too_many(self, main: popxl.Graph, graph: popxl.Graph):
        x = popxl.variable([1.0, 2.0])
        with pytest.raises(ValueError, match="Too many inputs have been provided"):
            ops.call(graph, x, x, x)

    def test_too_few(self, main: popxl.Graph, graph: popxl.Graph):
        scalar_like = popxl.variable([1.0, 2.0], name="given")
        with pytest.raises(ValueError, match="Not enough inputs have been provided") as caught:
            ops.call(graph, scalar_like)
        assert "given" in str(caught.value)
        assert graph.inputs[1].id in str(caught.value)

    def test_too_few_of_a_graph_with_scalars(self, ir: popxl.Ir, main: popxl.Graph):
        spec = popxl.TensorSpec((), popxl.float32)
        with pytest.raises(ValueError, match="Not enough inputs have been provided"):
            ops.call(ir.create_graph(subtract, spec, spec), 1.0)

    def test_a_tensor_of_another_graph(self, main: popxl.Graph, graph: popxl.Graph):
        with pytest.raises(ValueError, match="is not in parent graph"):
            ops.call(graph, graph.inputs[0], graph.inputs[1])

    def test_a_key_of_another_graph(self, main: popxl.Graph, graph: popxl.Graph):
        x = popxl.variable([1.0, 2.0])
        with pytest.raises(ValueError, match="is not in the called graph"):
            ops.call(graph, x, inputs_dict={x: x})

    def test_twice(self, main: popxl.Graph, graph: popxl.Graph):
        x = popxl.variable([1.0, 2.0])
        with pytest.raises(ValueError, match="Graph input tensor is specified twice"):
            ops.call(graph, x, x, inputs_dict={graph.inputs[0]: x})

    def test_not_convertible(self, main: popxl.Graph, graph: popxl.Graph):
        with pytest.raises(TypeError, match="could not be coerced into a tensor"):
            ops.call(graph, ["text", "text"])

    def test_empty_value(self, main: popxl.Graph, graph: popxl.Graph):
        with pytest.raises(TypeError, match="could not be coerced into a tensor"):
            ops.call(graph, inputs_dict={key: [] for key in graph.inputs})

    @pytest.mark.parametrize(
        "value", [np.ones(3), np.ones((2, 1)), np.float32(1.0)], ids=["length", "rank", "scalar"]
    )
    def test_another_shape(self, main: popxl.Graph, graph: popxl.Graph, value: Any):
        x = popxl.variable([1.0, 2.0])
        with pytest.raises(popart.popart_exception):
            ops.call(graph, x, popxl.variable(value))

    def test_another_dtype(self, main: popxl.Graph, graph: popxl.Graph):
        with pytest.raises(popart.popart_exception):
            ops.call(graph, popxl.variable([1, 2]), popxl.variable([1, 2]))

    def test_another_meta_shape(self, ir: popxl.Ir, main: popxl.Graph):
        spec = popxl.TensorSpec((2,), popxl.float32, (4,))
        graph = ir.create_graph(lambda a: a, spec)
        with pytest.raises(popart.popart_exception):
            ops.call(graph, popxl.variable([1.0, 2.0]))

    def test_unchecked_inputs_are_looked_up(self, main: popxl.Graph, graph: popxl.Graph):
        with pytest.raises((IndexError, popart.popart_exception)):
            ops.call_with_info(graph, popxl.variable([1.0, 2.0]), check_inputs=False)


def test_calls_are_by_value(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def fn(a):
        ops.add_(a, popxl.constant([1.0, 1.0]))
        return a

    x = popxl.variable([1.0, 2.0])
    (y,) = ops.call(ir.create_graph(fn, x), x)
    found, before = run(make_session, ir, y, x)
    np.testing.assert_array_equal(found, [2.0, 3.0])
    np.testing.assert_array_equal(before, [1.0, 2.0])


def test_an_output_that_is_an_input_is_fresh(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    x = popxl.variable([1.0, 2.0])
    (y,) = ops.call(ir.create_graph(lambda a: a, x), x)
    ops.add_(y, popxl.constant([1.0, 1.0]))
    found, before = run(make_session, ir, y, x)
    np.testing.assert_array_equal(found, [2.0, 3.0])
    np.testing.assert_array_equal(before, [1.0, 2.0])


def test_by_reference(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def fn(a: popxl.TensorByRef):
        a += 1.0

    x = popxl.variable([1.0, 2.0])
    graph = ir.create_graph(fn, x)
    ops.call(graph, x)
    ops.call(graph, x)
    (found,) = run(make_session, ir, x)
    np.testing.assert_array_equal(found, [3.0, 4.0])


def test_by_reference_through_two_levels(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def inner(a: popxl.TensorByRef):
        a += 1.0

    def outer(a: popxl.TensorByRef):
        graph = ir.create_graph(inner, a)
        ops.call(graph, a)
        ops.call(graph, a)
        return a * 10.0

    x = popxl.variable([1.0, 2.0])
    (y,) = ops.call(ir.create_graph(outer, x), x)
    found, tens = run(make_session, ir, x, y)
    np.testing.assert_array_equal(found, [3.0, 4.0])
    np.testing.assert_array_equal(tens, [30.0, 40.0])


def test_outputs_are_no_references(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def fn(a: popxl.TensorByRef):
        a += 1.0
        return a

    x = popxl.variable([1.0, 2.0])
    (y,) = ops.call(ir.create_graph(fn, x), x)
    ops.add_(y, popxl.constant([10.0, 10.0]))
    found, of_call = run(make_session, ir, x, y)
    np.testing.assert_array_equal(found, [2.0, 3.0])
    np.testing.assert_array_equal(of_call, [12.0, 13.0])


def test_an_alias_by_value_beside_a_reference(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def fn(a: popxl.TensorByRef, b):
        a += 1.0
        return b

    x = popxl.variable([[1.0, 2.0]])
    alias = ops.reshape_(x, (2,))
    (y,) = ops.call(ir.create_graph(fn, x, alias), x, alias)
    before, after = run(make_session, ir, y, alias)
    np.testing.assert_array_equal(before, [1.0, 2.0])
    np.testing.assert_array_equal(after, [2.0, 3.0])


def test_by_reference_of_a_part(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def fn(a: popxl.TensorByRef):
        a += 10

    x = popxl.variable([1, 2, 3])
    part = ops.slice_(x, 1, 3)
    ops.call(ir.create_graph(fn, part), part)
    (found,) = run(make_session, ir, x)
    np.testing.assert_array_equal(found, [1, 12, 13])


def test_a_reference_to_a_tensor_that_is_also_another_input(ir: popxl.Ir, main: popxl.Graph):
    def fn(a: popxl.TensorByRef, b):
        a += b

    x = popxl.variable([1.0, 2.0])
    with pytest.raises(popart.popart_internal_exception):
        ops.call(ir.create_graph(fn, x, x), x, x)


@pytest.mark.parametrize("infer", [False, True])
def test_set_parent_input_modified(ir: popxl.Ir, main: popxl.Graph, make_session: Any, infer: bool):
    def fn(a):
        a += 1.0

    x, y = popxl.variable([1.0, 2.0]), popxl.variable([1.0, 2.0])
    graph = ir.create_graph(fn, x)
    ops.call_with_info(graph, x).set_parent_input_modified(x, infer_modified_regions=infer)
    ops.call_with_info(graph, y)
    changed, kept = run(make_session, ir, x, y)
    np.testing.assert_array_equal(changed, [2.0, 3.0])
    np.testing.assert_array_equal(kept, [1.0, 2.0])


def test_set_parent_input_modified_of_other_tensors(ir: popxl.Ir, main: popxl.Graph):
    x, y = popxl.variable([1.0, 2.0]), popxl.variable([1.0, 2.0])
    info = ops.call_with_info(ir.create_graph(subtract, x, x), x, x)
    for tensor in (x, y):
        with pytest.raises(popart.popart_internal_exception):
            info.set_parent_input_modified(tensor)


def test_nested_calls(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def inner(a):
        return a * 2.0

    def outer(a):
        graph = ir.create_graph(inner, a)
        (once,) = ops.call(graph, a)
        (twice,) = ops.call(graph, once)
        return once, twice

    x = popxl.variable([1.0, 2.0])
    outputs = ops.call(ir.create_graph(outer, x), x)
    once, twice = run(make_session, ir, *outputs)
    np.testing.assert_array_equal(once, [2.0, 4.0])
    np.testing.assert_array_equal(twice, [4.0, 8.0])


def test_call_site(ir: popxl.Ir, main: popxl.Graph):
    def fn(a, b):
        return a + b, b

    a, b = popxl.variable([1.0, 2.0]), popxl.variable([1.0, 2.0])
    graph = ir.create_graph(fn, a, b)
    info = ops.call_with_info(graph, a, b)
    assert info.called_graph is graph
    assert info.inputs == (a, b)
    assert len(info.outputs) == 2
    assert info.graph_to_parent(graph.inputs[0]) is a
    assert info.graph_to_parent(graph.outputs[0]) is info.outputs[0]
    assert info.graph_to_parent(graph.outputs[1]) is b  # an input is found first
    assert info.parent_to_graph(b) is graph.inputs[1]
    assert info.parent_input(1) is b
    assert info.parent_output(0) is info.outputs[0]
    for index in range(2):
        assert info.graph_to_parent_input_index(index) == index
        assert info.parent_to_graph_input_index(index) == index
        assert info.graph_to_parent_output_index(index) == index
        assert info.parent_to_graph_output_index(index) == index


def test_call_site_errors(ir: popxl.Ir, main: popxl.Graph):
    x, other = popxl.variable([1.0, 2.0]), popxl.variable(1)
    info = ops.call_with_info(ir.create_graph(subtract, x, x), x, x)
    with pytest.raises(ValueError, match="is not an input or output of the called graph"):
        info.graph_to_parent(x)
    with pytest.raises(ValueError, match="not an input"):
        info.parent_to_graph(other)
    for index in (-1, 2, 99):
        with pytest.raises(IndexError):
            info.parent_input(index)
        with pytest.raises(IndexError):
            info.parent_output(index)


def test_a_tensor_at_two_inputs(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    x = popxl.variable([1.0, 2.0])
    graph = ir.create_graph(subtract, x, x)
    info = ops.call_with_info(graph, x, x)
    assert info.parent_to_graph(x) is graph.inputs[0]
    (found,) = run(make_session, ir, info.outputs[0])
    np.testing.assert_array_equal(found, [0.0, 0.0])


def test_output_names(ir: popxl.Ir, main: popxl.Graph):
    x = popxl.variable([1.0, 2.0])
    graph = ir.create_graph(lambda a: ops.relu(a), x)
    with popxl.name_scope("s"):
        first = ops.call(graph, x)[0]
        second = ops.call(graph, x)[0]
    assert first.name == f"s/{graph.outputs[0].name}"
    assert second.name.startswith(f"{first.name}__t")


def test_module_pattern(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    class Scale(popxl.Module):
        def build(self, x):
            self.w = popxl.graph_input(x.shape, x.dtype, "w")
            return self.w * x

    x, w = popxl.variable([1.0, 2.0]), popxl.variable([3.0, 4.0])
    module = Scale()
    graph = ir.create_graph(module, x)
    (y,) = ops.call(graph, x, inputs_dict={module.w: w})
    (found,) = run(make_session, ir, y)
    np.testing.assert_array_equal(found, [3.0, 8.0])


@pytest.mark.parametrize("destination", ["compute_buffer", "io_buffer", "elsewhere"])
def test_remote_code_load_destinations(ir: popxl.Ir, main: popxl.Graph, destination: Any):
    with pytest.raises(NotImplementedError):
        ops.remote_code_load(ir.create_empty_graph(), destination)


def test_remote_code_load(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    x = popxl.variable([1.0, 2.0])
    graph = ir.create_graph(lambda a: a + 1.0, x)
    assert ops.remote_code_load(graph, "executable") is None
    with pytest.raises(ValueError, match="own code"):
        ops.remote_code_load(main, "executable")
    (found,) = run(make_session, ir, *ops.call(graph, x))
    np.testing.assert_array_equal(found, [2.0, 3.0])


def test_code_copy(ir: popxl.Ir):
    from popxl.ops.code_copy import code_copy

    with pytest.raises(NotImplementedError):
        code_copy(ir.create_empty_graph(), "executable", "io_buffer")
