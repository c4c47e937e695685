"""ops.conditional: branches, inputs, sites, replicas that choose differently."""

# No `from __future__ import annotations`: by-reference inputs are found by their annotation.

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

from runtime.tests.popxl.programs import run

SPEC = popxl.TensorSpec((), popxl.int32)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("choice", [True, False])
def test_choice(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any, choice: bool, shape: tuple[int, ...]
):
    condition = popxl.variable(np.full(shape, choice))
    a, b = popxl.variable(3), popxl.variable(5)
    then = ir.create_graph(lambda x: (x + 1, x), SPEC)
    other = ir.create_graph(lambda x, y: (x * y, y), SPEC, SPEC)
    outputs = ops.conditional(condition, then, other, [a], [a, b])
    found = run(make_session, ir, *outputs)
    assert [int(v) for v in found] == ([4, 3] if choice else [15, 5])


def test_ways_to_give_inputs(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    condition, a = popxl.variable(False), popxl.variable(3)
    then = ir.create_graph(lambda x: x, SPEC)
    other = ir.create_graph(lambda x, y: x - y, SPEC, SPEC)
    (y,) = ops.conditional(
        condition,
        then,
        other,
        then_inputs_dict={then.inputs[0]: 7},
        else_inputs=[[a]],
        else_inputs_dict={other.inputs[1]: 10},
    )
    (found,) = run(make_session, ir, y)
    assert found == -7


@pytest.mark.parametrize("choice", [True, False])
def test_only_the_chosen_branch_has_effects(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any, choice: bool
):
    buffer = popxl.remote_buffer((), popxl.int32, 2)
    kept = [popxl.remote_variable(0, buffer, entry) for entry in range(2)]
    graphs = [
        ir.create_graph(lambda x, e=entry: ops.remote_store(buffer, e, x), SPEC)
        for entry in range(2)
    ]
    a = popxl.variable(3)
    assert ops.conditional(popxl.variable(choice), *graphs, [a], [a]) == ()
    with make_session(ir) as session:
        session.run()
    assert [int(session.get_tensor_data(v)) for v in kept] == ([3, 0] if choice else [0, 3])


def test_streams_advance_only_where_taken(ir: popxl.Ir, make_session: Any):
    ir.num_host_transfers = 3
    with ir.main_graph, popxl.in_sequence():
        xs = popxl.h2d_stream((), popxl.int32)
        flags = popxl.h2d_stream((), popxl.bool)
        ys = popxl.d2h_stream((), popxl.int32)
        then = ir.create_graph(lambda: ops.host_load(xs))
        other = ir.create_graph(lambda: popxl.constant(-1) + 0)

        def body():
            (y,) = ops.conditional(ops.host_load(flags), then, other)
            ops.host_store(ys, y)

        ops.repeat(ir.create_graph(body), 3)
    with make_session(ir) as session:
        found = session.run({xs: [10, 11, 12], flags: [True, False, True]})[ys]
    np.testing.assert_array_equal(found, [10, -1, 11])


def test_errors(ir: popxl.Ir, main: popxl.Graph):
    condition, a = popxl.variable(True), popxl.variable(3)
    one = ir.create_graph(lambda x: x, SPEC)
    two = ir.create_graph(lambda x: (x, x), SPEC)
    with pytest.raises(ValueError, match="must have the same number of outputs"):
        ops.conditional(condition, one, two, [a], [a])
    with pytest.raises(ValueError, match="Too many inputs"):
        ops.conditional(condition, one, one, [a, a], [a])
    with pytest.raises(ValueError, match="Not enough inputs"):
        ops.conditional(condition, one, one, [a])
    for word, key in (("then_branch", "then_inputs_dict"), ("else_branch", "else_inputs_dict")):
        inputs: dict[str, Any] = {"then_inputs": [a], "else_inputs": [a], key: {a: a}}
        with pytest.raises(ValueError, match=f"is not in the {word} graph"):
            ops.conditional(condition, one, one, **inputs)


def test_condition_is_not_checked_as_other_inputs_are(ir: popxl.Ir, main: popxl.Graph):
    a = popxl.variable(3)
    graph = ir.create_graph(lambda x: x, SPEC)
    with pytest.raises(AttributeError):
        ops.conditional(True, graph, graph, [a], [a])  # type: ignore[arg-type]
    with pytest.raises(popart.popart_exception):
        ops.conditional(graph.inputs[0], graph, graph, [a], [a])


def test_by_reference_fails_after_the_op_is_made(ir: popxl.Ir, main: popxl.Graph):
    def fn(x: popxl.TensorByRef):
        return x

    a, graph = popxl.variable(3), ir.create_graph(fn, SPEC)
    with pytest.raises(NotImplementedError):
        ops.conditional(popxl.variable(True), graph, graph, [a], [a])
    assert [op.opType() for op in main._pb_graph.getOps()] == ["If"]


def test_site(ir: popxl.Ir, main: popxl.Graph):
    condition, a, b = popxl.variable(True), popxl.variable(3), popxl.variable(4)
    then = ir.create_graph(lambda x: ops.negate(x), SPEC)
    other = ir.create_graph(lambda x, y: x + y, SPEC, SPEC)
    info = ops.conditional_with_info(condition, then, other, [a], [b, a])
    assert info.called_graph == (then, other)
    assert info.inputs == (condition, a, b, a)
    (y,) = info.outputs
    assert y.name == f"{then.outputs[0].name}_or_{other.outputs[0].name}"
    assert info.graph_to_parent_input_index(0) == 1
    assert info.graph_to_parent_input_index(1, then_branch=False) == 3
    assert [info.parent_to_graph_input_index(i) for i in (1, 2, 3)] == [0, 0, 1]
    assert [info.is_parent_index_in_then_branch(i) for i in (1, 2, 3)] == [True, False, False]
    assert info.graph_to_parent_output_index(0) == info.parent_to_graph_output_index(0, False) == 0
    assert info.graph_to_parent(then.inputs[0]) is a
    assert info.graph_to_parent(other.inputs[0]) is b
    assert info.graph_to_parent(other.outputs[0]) is y
    assert info.parent_to_graph(a) is then.inputs[0]
    assert info.parent_to_graph(b) is other.inputs[0]


def test_site_errors(ir: popxl.Ir, main: popxl.Graph):
    a = popxl.variable(3)
    graph = ir.create_graph(lambda x: x, SPEC)
    info = ops.conditional_with_info(popxl.variable(True), graph, graph, [a], [a])
    for method, index in [
        (info.parent_to_graph_input_index, 0),
        (info.parent_to_graph_input_index, 3),
        (info.is_parent_index_in_then_branch, 0),
        (info.is_parent_index_in_then_branch, 3),
        (info.graph_to_parent_input_index, 1),
        (info.graph_to_parent_output_index, 1),
        (info.parent_to_graph_output_index, -1),
    ]:
        with pytest.raises(IndexError):
            method(index)
    with pytest.raises(NotImplementedError):
        info.set_parent_input_modified(a)
    with pytest.raises(ValueError, match="not an input or output"):
        info.graph_to_parent(a)
    with pytest.raises(ValueError, match="not an input"):
        info.parent_to_graph(popxl.variable(1))


def test_inputs_that_are_never_used_may_be_missing(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    graph = ir.create_graph(lambda x, y: x, SPEC, SPEC)
    a = popxl.variable(3)
    info = ops.conditional_with_info(
        popxl.variable(True), graph, graph, [a], [a], check_inputs=False
    )
    (found,) = run(make_session, ir, *info.outputs)
    assert found == 3


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_choose_for_themselves(
    make_session: Any, rng: np.random.Generator, replicas: int, shape: tuple[int, ...]
):
    ir = popxl.Ir(replicas)
    with ir.main_graph, popxl.in_sequence():
        flags = popxl.h2d_stream(shape, popxl.bool)
        xs = popxl.h2d_stream((3,), popxl.float32)
        ys = popxl.d2h_stream((3,), popxl.float32)
        x = ops.host_load(xs)
        then = ir.create_graph(lambda a: a * 2.0, x)
        other = ir.create_graph(lambda a: a + 1.0, x)
        (y,) = ops.conditional(ops.host_load(flags), then, other, [x], [x])
        ops.host_store(ys, y)
    values = rng.normal(size=(replicas, 3)).astype("float32")
    with make_session(ir) as session:
        for choice in ([True, False] * (replicas // 2), [True] * replicas, [False] * replicas):
            chosen = np.array(choice).reshape(replicas, *shape)
            found = session.run({flags: chosen, xs: values})[ys]
            wanted = np.where(np.array(choice)[:, None], values * 2, values + 1)
            np.testing.assert_array_equal(found, wanted)


def test_effects_of_branches_that_some_replicas_take(make_session: Any, rng: np.random.Generator):
    ir = popxl.Ir(2)
    each = ir.replica_grouping(group_size=1)
    with ir.main_graph, popxl.in_sequence():
        flags = popxl.h2d_stream((), popxl.bool)
        buffer = popxl.remote_buffer((), popxl.float32, 1)
        kept = popxl.remote_variable(np.zeros(2, "float32"), buffer, 0, replica_grouping=each)
        x = popxl.variable(np.array([5.0, 6.0], "float32"), replica_grouping=each)
        then = ir.create_graph(lambda a: ops.remote_store(buffer, 0, a), x)
        other = ir.create_graph(lambda: None)
        ops.conditional(ops.host_load(flags), then, other, [x])
    with make_session(ir) as session:
        session.run({flags: np.array([False, True])})
    np.testing.assert_array_equal(session.get_tensor_data(kept), [0.0, 6.0])
