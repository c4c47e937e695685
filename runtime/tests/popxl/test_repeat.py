"""ops.repeat: carried, constant and by-reference inputs, the loop's site."""

# No `from __future__ import annotations`: by-reference inputs are found by their annotation.

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

from runtime.tests.popxl.programs import run


@pytest.mark.parametrize("count", [0, 1, 5])
def test_outputs_are_carried_to_inputs(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any, count: int
):
    def body(a, b, step):  # swaps by position, whatever the names
        return b, a + step

    a, b, step = popxl.variable(1), popxl.variable(10), popxl.variable(100)
    outputs = ops.repeat(ir.create_graph(body, a, b, step), count, a, b, step)
    wanted = (1, 10)
    for _ in range(count):
        wanted = (wanted[1], wanted[0] + 100)
    found = run(make_session, ir, *outputs, a, b)
    assert [int(v) for v in found] == [*wanted, 1, 10]


def test_loops_within_loops(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def inner(a):
        return a * 2

    def outer(a):
        (a,) = ops.repeat(ir.create_graph(inner, a), 3, a)
        return a + 1

    x = popxl.variable(1)
    (y,) = ops.repeat(ir.create_graph(outer, x), 2, x)
    (found,) = run(make_session, ir, y)
    assert found == (1 * 8 + 1) * 8 + 1


def test_values_become_constants(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    spec = popxl.TensorSpec((), popxl.int32)
    graph = ir.create_graph(lambda a, b: a + b, spec, spec)
    (y,) = ops.repeat(graph, 4, 1, inputs_dict={graph.inputs[1]: 2.9})
    (found,) = run(make_session, ir, y)
    assert found == 1 + 4 * 2


def test_constant_inputs_are_new_in_every_iteration(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    def body(total, x):
        x += 1
        return total + x

    total, x = popxl.variable(0), popxl.variable(10)
    (y,) = ops.repeat(ir.create_graph(body, total, x), 3, total, x)
    found = run(make_session, ir, y, x)
    assert [int(v) for v in found] == [33, 10]


def test_references_accumulate(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(total, x: popxl.TensorByRef):
        x += 1
        return total + x

    total, x = popxl.variable(0), popxl.variable(10)
    (y,) = ops.repeat(ir.create_graph(body, total, x), 3, total, x)
    found = run(make_session, ir, y, x)
    assert [int(v) for v in found] == [11 + 12 + 13, 13]


def test_a_carried_reference_keeps_the_last_iterations_input(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    def body(x: popxl.TensorByRef):
        return x + 1

    x = popxl.variable(0)
    (y,) = ops.repeat(ir.create_graph(body, x), 5, x)
    found = run(make_session, ir, y, x)
    assert [int(v) for v in found] == [5, 4]


def test_a_carried_reference_with_changes_in_place(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    def body(x: popxl.TensorByRef):
        x += 10
        return x + 1

    x = popxl.variable(0)
    (y,) = ops.repeat(ir.create_graph(body, x), 2, x)
    found = run(make_session, ir, y, x)
    assert [int(v) for v in found] == [22, 21]


def test_references_without_iterations(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(a: popxl.TensorByRef, b: popxl.TensorByRef):
        a += 1
        b += 1
        return a + b

    a, b = popxl.variable(1), popxl.variable(2)
    (y,) = ops.repeat(ir.create_graph(body, a, b), 0, a, b)
    found = run(make_session, ir, y, a, b)
    assert [int(v) for v in found] == [1, 1, 2]


def test_a_reference_to_a_part(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(a: popxl.TensorByRef):
        a += 10

    x = popxl.variable([1, 2, 3])
    part = ops.slice_(x, 1, 3)
    ops.repeat(ir.create_graph(body, part), 3, part)
    (found,) = run(make_session, ir, x)
    np.testing.assert_array_equal(found, [1, 32, 33])


def test_writes_to_a_carried_value_stay_inside(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(a):
        a += 10
        return a * 2

    x = popxl.variable(1)
    (y,) = ops.repeat(ir.create_graph(body, x), 2, x)
    found = run(make_session, ir, y, x)
    assert [int(v) for v in found] == [64, 1]


def test_state_across_runs(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def bump(n: popxl.TensorByRef):
        ops.add_(n, popxl.constant(1, n.dtype))

    n = popxl.variable(0)
    ops.repeat(ir.create_graph(bump, n), 3, n)
    with make_session(ir) as session:
        session.run()
        session.run()
    assert session.get_tensor_data(n) == 6


def test_one_parent_at_two_inputs(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(a, b):
        return a + b

    x = popxl.variable(1)
    (y,) = ops.repeat(ir.create_graph(body, x, x), 3, x, x)
    (found,) = run(make_session, ir, y)
    assert found == 4


def test_a_counter_is_carried_by_the_program(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    rows = np.arange(6, dtype="float32").reshape(3, 2) ** 2
    buffer = popxl.remote_buffer((2,), popxl.float32, 3)
    for entry, row in enumerate(rows):
        popxl.remote_variable(row, buffer, entry)

    def body(total, i):
        return total + ops.remote_load(buffer, i), i + 1

    total, i = popxl.constant(np.zeros(2, "float32")), popxl.constant(0, popxl.uint32)
    y, _ = ops.repeat(ir.create_graph(body, total, i), 3, total, i)
    (found,) = run(make_session, ir, y)
    np.testing.assert_array_equal(found, rows.sum(0))


def test_errors(ir: popxl.Ir, main: popxl.Graph):
    x = popxl.variable(1)
    graph = ir.create_graph(lambda a: a + 1, x)
    with pytest.raises(ValueError, match="Repeat count must be >= 0"):
        ops.repeat(graph, -1, x)
    with pytest.raises(ValueError, match="Too many inputs have been provided"):
        ops.repeat(graph, 1, x, x)
    with pytest.raises(ValueError, match="Not enough inputs have been provided"):
        ops.repeat(graph, 1)
    with pytest.raises((IndexError, popart.popart_exception)):
        ops.repeat_with_info(graph, 1, check_inputs=False)
    more_outputs = ir.create_graph(lambda a: (a, a), x)
    message = "number of inputs must be greater than or equal to the number of outputs"
    with pytest.raises(ValueError, match=f"To repeat the subgraph .*{message}"):
        ops.repeat(more_outputs, 1, x)
    other_dtype = ir.create_graph(lambda a: ops.cast(a, popxl.float32), x)
    with pytest.raises(popart.popart_exception):
        ops.repeat(other_dtype, 2, x)


def test_site(ir: popxl.Ir, main: popxl.Graph):
    a, b = popxl.variable(1), popxl.variable(2)
    graph = ir.create_graph(lambda a, b: a + b, a, b)
    info = ops.repeat_with_info(graph, 3, a, b)
    wrapper = info.called_graph
    assert wrapper.id.startswith(f"{graph.id}__loop_wrapper_subgraph(")
    assert wrapper.called_graphs == (graph,)
    assert [(t.dtype, t.shape) for t in wrapper.inputs[:2]] == [
        (popxl.int32, ()),
        (popxl.bool, ()),
    ]
    assert len(wrapper.inputs) == 4
    assert [t.dtype for t in wrapper.outputs] == [popxl.bool, popxl.int32]
    assert [op.opType() for op in wrapper._pb_graph.getOps()] == ["Call"]
    assert info.inputs == (a, b)
    assert info.parent_input(2) is a
    assert info.parent_input(3) is b
    for index in (0, 1, 4):
        with pytest.raises(IndexError):
            info.parent_input(index)
    assert info.graph_to_parent_input_index(2) == info.parent_to_graph_input_index(2) == 2
    assert info.graph_to_parent_output_index(1) == 0
    assert info.parent_to_graph_output_index(0) == 1
    with pytest.raises(IndexError):
        info.graph_to_parent_output_index(0)
    assert info.parent_output(0) is info.outputs[0]
    assert info.graph_to_parent(wrapper.inputs[3]) is b
    assert info.graph_to_parent(wrapper.outputs[1]) is info.outputs[0]
    assert info.parent_to_graph(b) is wrapper.inputs[3]
    assert info._op.getTripCountValue() == 3
    with pytest.raises(ValueError, match="is not an input or output of the called graph"):
        info.graph_to_parent(graph.inputs[0])


def test_flagging_only_the_loop_changes_nothing(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    def body(total, x):
        x += 1
        return total + x

    total, x = popxl.variable(0), popxl.variable(10)
    info = ops.repeat_with_info(ir.create_graph(body, total, x), 3, total, x)
    info.set_parent_input_modified(x)
    found = run(make_session, ir, *info.outputs, x)
    assert [int(v) for v in found] == [33, 10]


def test_flagging_errors(ir: popxl.Ir, main: popxl.Graph):
    x, other = popxl.variable(0), popxl.variable(0)
    info = ops.repeat_with_info(ir.create_graph(lambda a, b: a + b, x, x), 3, x, x)
    for tensor in (x, other):
        with pytest.raises(popart.popart_internal_exception):
            info.set_parent_input_modified(tensor)


def test_result_names(ir: popxl.Ir, main: popxl.Graph):
    x = popxl.variable(1)
    graph = ir.create_graph(lambda a: a + 1, x)
    with popxl.name_scope("s"):
        (y,) = ops.repeat(graph, 2, x)
    assert y.name.startswith(f"{graph.outputs[0].name}__t")
    assert main.get_tensor(y.id) is y


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas(make_session: Any, rng: np.random.Generator, replicas: int, varies: bool):
    """A value that is equal on all replicas at first may differ after an iteration."""
    ir = popxl.Ir(replicas)
    start = rng.normal(size=3).astype("float32")
    factors = rng.normal(size=(replicas, 3)).astype("float32")
    if not varies:
        factors[:] = factors[0]
    each = ir.replica_grouping(group_size=1)
    with ir.main_graph, popxl.in_sequence():
        x, factor = popxl.variable(start), popxl.variable(factors, replica_grouping=each)

        def body(a, f, total: popxl.TensorByRef):
            total += a
            return a * f

        total = popxl.variable(np.zeros((replicas, 3), "float32"), replica_grouping=each)
        (y,) = ops.repeat(ir.create_graph(body, x, factor, total), 3, x, factor, total)
        out = popxl.d2h_stream((3,), popxl.float32)
        ops.host_store(out, y)
    with make_session(ir) as session:
        found = session.run()[out]
    np.testing.assert_allclose(found, start * factors**3, rtol=1e-6)
    sums = start * (1 + factors + factors**2)
    np.testing.assert_allclose(session.get_tensor_data(total), sums, rtol=1e-5, atol=1e-6)
