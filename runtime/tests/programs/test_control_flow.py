"""Nested calls, loops and conditionals, by value and by reference."""
# No string annotations here: popxl recognises TensorByRef by identity.

import numpy as np
import popxl
import pytest
from popxl import ops


def _run(ir: popxl.Ir, outputs: dict[str, popxl.Tensor], inputs=None) -> dict[str, np.ndarray]:
    """Values of tensors of the main graph after one run, with its variables afterwards."""
    with ir.main_graph, popxl.in_sequence():
        streams = {name: popxl.d2h_stream(t.shape, t.dtype) for name, t in outputs.items()}
        for name, t in outputs.items():
            ops.host_store(streams[name], t)
    session = popxl.Session(ir, "ipu_hw")
    with session:
        found = session.run(inputs)
    return {name: found[s] for name, s in streams.items()} | {
        v.name: np.array(session.get_tensor_data(v)) for v in ir.main_graph.variables
    }


def test_loop_in_loop_in_conditional() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(np.array([1.0, 2.0], "float32"), name="x")
        n = popxl.variable(0, popxl.int32, name="n")

        def inner(t: popxl.Tensor, count: popxl.TensorByRef):
            ops.add_(count, popxl.constant(1, popxl.int32))
            return t * 2.0

        def outer(t: popxl.Tensor, count: popxl.TensorByRef):
            g = ir.create_graph(inner, t, count)
            (t,) = ops.repeat(g, 3, t, count)
            return t + 1.0

        def yes(t: popxl.Tensor, count: popxl.Tensor):
            g = ir.create_graph(outer, t, count)
            (t,) = ops.repeat(g, 2, t, count)
            return t, count

        def no(t: popxl.Tensor, count: popxl.Tensor):
            return t, count

        condition = ops.greater(ops.sum(x), popxl.constant(2.5))
        y, seen = ops.conditional(
            condition,
            ir.create_graph(yes, x, n),
            ir.create_graph(no, x, n),
            [x, n],
            [x, n],
        )
    got = _run(ir, {"y": y, "seen": seen})
    np.testing.assert_array_equal(got["y"], (np.array([1, 2]) * 8 + 1) * 8 + 1)
    assert got["seen"] == 6
    assert got["n"] == 0  # branches take their inputs by value


def test_a_carried_reference_holds_what_the_last_iteration_had() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(0, popxl.int32, name="x")

        def body(t: popxl.TensorByRef):
            return t + 1

        (y,) = ops.repeat(ir.create_graph(body, x), 5, x)
    got = _run(ir, {"y": y})
    assert got["y"] == 5
    assert got["x"] == 4


def test_aliases_of_a_reference_through_two_calls() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        table = popxl.variable(np.zeros((4, 3), "float32"), name="table")

        def bump(row: popxl.TensorByRef):
            ops.add_(row, popxl.constant(np.array([1.0, 2.0, 3.0], "float32")))

        def rows(t: popxl.TensorByRef):
            part = ops.slice_(t, 1, 3, axis=0)
            flat = ops.reshape_(ops.slice_(part, 0, 1, axis=0), (3,))
            ops.call(ir.create_graph(bump, flat), flat)
            both = ops.transpose_(part)
            ops.add_(both, popxl.constant(10.0))

        g = ir.create_graph(rows, table)
        before = table + 0.0
        ops.repeat(g, 2, table)
    got = _run(ir, {"before": before})
    assert not got["before"].any()
    expected = np.zeros((4, 3))
    expected[1] = 20 + 2 * np.array([1, 2, 3])
    expected[2] = 20
    np.testing.assert_array_equal(got["table"], expected)


def test_the_same_tensor_twice_and_inputs_returned() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(np.array([1.0, 2.0], "float32"), name="x")

        def body(a: popxl.Tensor, b: popxl.Tensor, c: popxl.Tensor):
            ops.add_(a, c)
            return b, a, a  # swaps what is carried, returns one twice

        g = ir.create_graph(body, x, x, x)
        one, two, three = ops.repeat(g, 3, x, x, x)
        a, b, c = ops.call(g, x, x, x)
        a = ops.add_(a, popxl.constant(100.0))  # results are separate tensors
    got = _run(ir, {"one": one, "two": two, "three": three, "a": a, "b": b, "c": c})
    p = q = r = np.array([1.0, 2.0])
    for _ in range(3):
        p = p + r
        p, q, r = q, p, p
    for name, wanted in {"one": p, "two": q, "three": r}.items():
        np.testing.assert_array_equal(got[name], wanted)
    np.testing.assert_array_equal(got["a"], [101, 102])
    np.testing.assert_array_equal(got["b"], [2, 4])
    np.testing.assert_array_equal(got["c"], [2, 4])
    np.testing.assert_array_equal(got["x"], [1, 2])


@pytest.mark.parametrize("choice", [0, 1, 2, 3])
def test_a_switch_made_of_conditionals(choice: int) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.int32)
        pick = ops.host_load(stream)
        x = popxl.variable(np.arange(3, dtype="float32"), name="x")

        def leaf(t: popxl.Tensor, factor: float):
            return t * factor

        def fork(t: popxl.Tensor, i: popxl.Tensor, low: float):
            odd = ops.equal(i % 2, popxl.constant(1, popxl.int32))
            branches = ir.create_graph(leaf, t, low + 1.0), ir.create_graph(leaf, t, low)
            return ops.conditional(odd, *branches, [t], [t])

        high = ops.greater(pick, popxl.constant(1, popxl.int32))
        upper, lower = ir.create_graph(fork, x, pick, 12.0), ir.create_graph(fork, x, pick, 10.0)
        (y,) = ops.conditional(high, upper, lower, [x, pick], [x, pick])
    got = _run(ir, {"y": y}, {stream: np.int32(choice)})
    np.testing.assert_array_equal(got["y"], np.arange(3) * (10.0 + choice))


def test_replicas_take_different_branches_with_effects() -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.float32)
        out = popxl.d2h_stream((), popxl.float32, "out")
        buffer = popxl.remote_buffer((), popxl.float32, entries=2)
        x = ops.host_load(stream)

        def yes(t: popxl.Tensor):
            ops.remote_store(buffer, 0, t)
            ops.host_store(out, t * 2.0)
            return t + 1.0

        def no(t: popxl.Tensor):
            ops.remote_store(buffer, 1, t)
            ops.host_store(out, t * 3.0)
            return t - 1.0

        positive = ops.greater(x, popxl.constant(0.0))
        (y,) = ops.conditional(positive, ir.create_graph(yes, x), ir.create_graph(no, x), [x], [x])
        zero, one = ops.remote_load(buffer, 0), ops.remote_load(buffer, 1)
    given = np.array([1.0, -2.0, 3.0, -4.0], "float32")
    with ir.main_graph, popxl.in_sequence():
        streams = [popxl.d2h_stream((), popxl.float32) for _ in range(3)]
        for s, t in zip(streams, (y, zero, one), strict=True):
            ops.host_store(s, t)
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({stream: given})
    np.testing.assert_array_equal(found[out], np.where(given > 0, given * 2, given * 3))
    np.testing.assert_array_equal(found[streams[0]], np.where(given > 0, given + 1, given - 1))
    np.testing.assert_array_equal(found[streams[1]], np.maximum(given, 0))
    np.testing.assert_array_equal(found[streams[2]], np.minimum(given, 0))


def test_a_collective_that_only_some_replicas_reach_is_an_error() -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.float32)
        x = ops.host_load(stream)
        yes = ir.create_graph(lambda t: ops.collectives.replicated_all_reduce(t), x)
        no = ir.create_graph(lambda t: t + 0.0, x)
        (y,) = ops.conditional(ops.greater(x, popxl.constant(0.0)), yes, no, [x], [x])
        out = popxl.d2h_stream((), popxl.float32)
        ops.host_store(out, y)
    with popxl.Session(ir, "ipu_hw") as session:
        got = session.run({stream: np.array([1.0, 2.0], "float32")})[out]
        np.testing.assert_array_equal(got, [3, 3])
        with pytest.raises(Exception, match=r"[Cc]ollective"):
            session.run({stream: np.array([1.0, -2.0], "float32")})


def test_choices_in_a_loop_change_what_it_refers_to() -> None:
    """A conditional picks a value from a table; the loop adds it to a tensor of the caller."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        start = popxl.h2d_stream((), popxl.int32)
        total = popxl.variable(np.zeros(3, "f4"), name="total")
        table = popxl.constant(np.arange(12, dtype="f4").reshape(4, 3))

        def body(i: popxl.Tensor, table: popxl.Tensor, total: popxl.TensorByRef):
            chosen = ops.gather(table, i % 4)
            double = ir.create_graph(lambda t: t * 2.0, chosen)
            negate = ir.create_graph(lambda t: -t, chosen)
            odd = ops.equal(i % 2, popxl.constant(1))
            (value,) = ops.conditional(odd, double, negate, [chosen], [chosen])
            ops.add_(total, value)
            return i + 1

        i = ops.host_load(start)
        (last,) = ops.repeat(ir.create_graph(body, i, table, total), 5, i, table, total)
        total = total + 0.0
    found = _run(ir, {"last": last, "sum": total}, {start: np.array([0, 3], "i4")})
    np.testing.assert_array_equal(found["last"], [5, 8])
    rows = np.arange(12).reshape(4, 3)
    for replica, first in enumerate((0, 3)):
        want = sum(rows[i % 4] * (2 if i % 2 else -1) for i in range(first, first + 5))
        np.testing.assert_array_equal(found["sum"][replica], want)
