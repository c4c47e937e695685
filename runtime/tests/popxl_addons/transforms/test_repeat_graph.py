"""A whole graph in a loop."""

import numpy as np
import popxl
import pytest
from popart import popart_exception
from popxl import ops
from popxl_addons.transforms.repeat_graph import repeat_graph


@pytest.mark.parametrize("count", [-1, 0, 1])
def test_up_to_one_nothing_changes(ir: popxl.Ir, count: int):
    t = popxl.constant(1.0) + 1.0
    assert repeat_graph(ir.main_graph, count) == ir.main_graph
    assert t in ir.main_graph


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_main_graph_runs_for_each_transfer(count: int):
    """A running sum of what the host sends, in a variable, equals numpy's."""
    ir = popxl.Ir()
    ir.num_host_transfers = count
    with ir.main_graph, popxl.in_sequence():
        into = popxl.h2d_stream((2, 3), popxl.float32)
        out = popxl.d2h_stream((2, 3), popxl.float32)
        total = popxl.variable(np.zeros((2, 3), np.float32), name="total")
        factor = popxl.constant(2.0)
        ops.add_(total, ops.host_load(into) * factor)
        ops.host_store(out, total + 0.0)
        unused = popxl.variable(7.0, name="unused")
    body = repeat_graph(ir.main_graph, count)
    assert [op.opType() for op in ir.main_graph._pb_graph.getOps()] == ["Loop"]
    assert "HostLoad" in [op.opType() for op in body._pb_graph.getOps()]
    given = np.random.default_rng(0).normal(size=(count, 2, 3)).astype(np.float32)
    with popxl.Session(ir, "ipu_hw") as session:
        stored = session.run({into: given})[out]
    np.testing.assert_allclose(stored, np.cumsum(2 * given, axis=0), rtol=1e-5)
    np.testing.assert_allclose(session.get_tensor_data(total), stored[-1])
    assert session.get_tensor_data(unused) == 7


def test_calls_loops_and_views_of_variables_move_along():
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        state = popxl.variable(np.zeros((2, 2), np.float32))

        def add_one(x: popxl.TensorByRef) -> None:
            ops.add_(x, popxl.constant(1.0))

        add = ir.create_graph(add_one, state)
        ops.repeat(add, 3, state)
        ops.add_(state.reshape_((4,)), popxl.constant(np.arange(4, dtype=np.float32)))
    repeat_graph(ir.main_graph, 2)
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    expected = 2 * (3 + np.arange(4).reshape(2, 2))
    np.testing.assert_array_equal(session.get_tensor_data(state), expected)


def test_outputs_of_a_sub_graph_are_those_of_the_last_iteration():
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(np.arange(3, dtype=np.float32))

        def step(x: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
            y = ops.add_(x, popxl.constant(1.0))
            return y * 2.0, x

        graph = ir.create_graph(step, x)
        repeat_graph(graph, 3)
        out = [popxl.d2h_stream((3,), popxl.float32) for _ in range(2)]
        for stream, tensor in zip(out, ops.call(graph, x), strict=True):
            ops.host_store(stream, tensor)
    with popxl.Session(ir, "ipu_hw") as session:
        doubled, last = session.run().values()
    np.testing.assert_array_equal(last, np.arange(3) + 3)
    np.testing.assert_array_equal(doubled, 2 * last)
    np.testing.assert_array_equal(session.get_tensor_data(x), np.arange(3))


def test_ops_that_send_weights_stay_outside():
    from popart._internal.ir import ExecutionContext
    from popxl.context import _execution_context

    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        with _execution_context(ExecutionContext.WeightsFromHostFragment):
            start = ops.init((), popxl.float32) + 5.0
        count = popxl.variable(0.0)
        ops.add_(count, start)
    repeat_graph(ir.main_graph, 4)
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    assert session.get_tensor_data(count) == 20


@pytest.mark.parametrize("ordered", [True, False])
def test_the_order_that_a_program_asks_for_moves_along(ordered: bool):
    """Two writes of one variable: without an order between them the session refuses both forms."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence(ordered):
        state = popxl.variable(1.0)
        ops.add_(state, popxl.constant(1.0))
        ops.add_(state, popxl.constant(2.0))
    repeat_graph(ir.main_graph, 2)
    if not ordered:
        with pytest.raises(popart_exception, match="ambiguity"):
            popxl.Session(ir, "ipu_hw")
        return
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    assert session.get_tensor_data(state) == 7
