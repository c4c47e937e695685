"""Plans as functions: what is written for loops, branches and weights, and what is known before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops

Build = Callable[[popxl.Ir, popxl.Tensor], popxl.Tensor]


def _session(build: Build, executor: str = "plan") -> tuple[popxl.Session, Callable]:
    """A session of y = build(x) for x of shape (4, 4)."""
    ir = popxl.Ir()
    ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.executor"] = executor
    with ir.main_graph, popxl.in_sequence():
        source = popxl.h2d_stream((4, 4), popxl.float32, "x")
        target = popxl.d2h_stream((4, 4), popxl.float32, "y")
        ops.host_store(target, build(ir, ops.host_load(source)))
    session = popxl.Session(ir, "ipu_hw")
    return session, lambda x: session.run({source: x})[target]


def _source(session: popxl.Session) -> str:
    """The function of the main plan that was made last."""
    plans = [plan for (way, *_), (plan, _) in session._engine._plans.items() if way.name == "main"]
    return plans[-1].bind()


def _weights(count: int, rng: np.random.Generator) -> tuple[popxl.RemoteBuffer, list]:
    buffer = popxl.remote_buffer((4, 4), popxl.float32, entries=count)
    data = rng.uniform(-0.5, 0.5, (count, 4, 4)).astype("float32")
    return buffer, [popxl.remote_variable(array, buffer, n) for n, array in enumerate(data)]


def _layers(count: int, rng: np.random.Generator, variables: list) -> Build:
    """x -> w[n].T @ x over all layers, by a loop."""

    def build(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
        buffer, made = _weights(count, rng)
        variables.extend(made)

        def layer(x: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return ops.remote_load(buffer, n).T @ x, n + 1

        n = popxl.constant(0, popxl.uint32)
        return ops.repeat(ir.create_graph(layer, x, n), count, x, n)[0]

    return build


def test_a_loop_over_weights_is_a_table_and_one_call(rng: np.random.Generator) -> None:
    session, run = _session(_layers(5, rng, []))
    with session:
        run(np.eye(4, dtype="float32"))
        loop = _source(session).split("for i0 in range(5):\n")[1].splitlines()
    calls = [line for line in loop if "(" in line and line.startswith(" " * 8)]
    assert len(calls) == 1
    assert "MatMul" in calls[0]
    assert "[i0]" in calls[0]


def test_new_weights_are_seen(rng: np.random.Generator) -> None:
    variables: list = []
    session, run = _session(_layers(3, rng, variables))
    x = np.eye(4, dtype="float32")
    with session:
        for _ in range(2):
            data = rng.uniform(-1, 1, (3, 4, 4)).astype("float32")
            session.write_variables_data(dict(zip(variables, data, strict=True)))
            wanted = data[2].T @ data[1].T @ data[0].T
            np.testing.assert_allclose(run(x), wanted, rtol=1e-5, atol=1e-6)


def test_weights_in_a_memory_map_that_is_written_are_seen(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = np.memmap(tmp_path / "w", "float32", "w+", shape=(4, 4))
    variables: list = []

    def build(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
        buffer = popxl.remote_buffer((4, 4), popxl.float32, entries=1)
        variables.append(popxl.remote_variable(data, buffer, 0))
        row = ops.exp(ops.remote_load(buffer, 0)[0])  # small, but not to be computed beforehand
        return x + row

    session, run = _session(build)
    x = np.zeros((4, 4), "float32")
    with session:
        for _ in range(2):
            new = rng.uniform(-1, 1, (4, 4)).astype("float32")
            session.write_variable_data(variables[0], new)
            np.testing.assert_allclose(run(x), np.exp(new[:1]) + x, rtol=1e-6)


def test_loads_of_a_buffer_that_is_stored_to_stay_in_the_run(rng: np.random.Generator) -> None:
    def build(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
        buffer, _ = _weights(1, rng)
        before = ops.remote_load(buffer, 0)
        ops.remote_store(buffer, 0, x)
        return before + ops.remote_load(buffer, 0)

    results = []
    for executor in ("plan", "interpreter"):
        rng = np.random.default_rng(0)
        session, run = _session(build, executor)
        with session:
            results.append([run(rng.normal(size=(4, 4)).astype("float32")) for _ in range(3)])
    np.testing.assert_allclose(*results, rtol=1e-6)


def _swap(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    """Carried values that change places; one that is never read."""

    def body(a: popxl.Tensor, b: popxl.Tensor, c: popxl.Tensor):
        return b, a, a - b

    graph = ir.create_graph(body, x, x, x)
    a, b, c = ops.repeat(graph, 3, x, x * 2.0, x * 3.0)
    return a + b * 10.0 + c * 100.0


def _no_iteration(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    graph = ir.create_graph(lambda a: ops.exp(a), x)
    return ops.repeat(graph, 0, x)[0] + 1.0


def _number_of_outer_and_inner(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    """Loops in loops, whose indices depend on each other."""

    def inner(x: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        return x + ops.cast(n, popxl.float32), n + 1

    def outer(x: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        x, _ = ops.repeat(ir.create_graph(inner, x, n), 3, x, n)
        return x * 0.5, n + 2

    n = popxl.constant(1, popxl.int32)
    return ops.repeat(ir.create_graph(outer, x, n), 4, x, n)[0]


def _index_of_the_data(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    """An index that is known for an iteration and not for the next."""

    def body(x: popxl.Tensor, n: popxl.Tensor, m: popxl.Tensor):
        return x + ops.cast(n + m, popxl.float32), m, ops.cast(ops.sum(x), popxl.int32)

    n, m = popxl.constant(1, popxl.int32), popxl.constant(2, popxl.int32)
    return ops.repeat(ir.create_graph(body, x, n, m), 4, x, n, m)[0]


def _deep(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    """More loops and branches in one another than Python's grammar allows."""

    def nest(depth: int) -> Callable[[popxl.Tensor], popxl.Tensor]:
        def body(x: popxl.Tensor) -> popxl.Tensor:
            if depth == 30:
                return ops.sin(x) + x
            graph = ir.create_graph(nest(depth + 1), x)
            if depth % 3:
                return ops.repeat(graph, 2 if depth < 6 else 1, x)[0]
            positive = ops.greater(ops.sum(x), popxl.constant(0.0))
            other = ir.create_graph(lambda t: ops.tanh(t), x)
            return ops.conditional(positive, graph, other, [x], [x])[0]

        return body

    return nest(0)(x)


@pytest.mark.parametrize(
    "build",
    [_swap, _no_iteration, _number_of_outer_and_inner, _index_of_the_data, _deep],
)
def test_control_flow_agrees_with_replicas_one_by_one(
    build: Build, rng: np.random.Generator
) -> None:
    xs = rng.uniform(-1, 1, (3, 4, 4)).astype("float32")
    results = []
    for executor in ("plan", "interpreter"):
        session, run = _session(build, executor)
        with session:
            results.append([run(x) for x in xs])
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_an_entry_out_of_range_fails_only_where_it_is_loaded() -> None:
    def build(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
        buffer = popxl.remote_buffer((4, 4), popxl.float32, entries=2)
        place = popxl.constant(1, popxl.int32)
        bad = ir.create_graph(lambda t, n: t + ops.remote_load(buffer, n * 7), x, place)
        good = ir.create_graph(lambda t, n: t + ops.remote_load(buffer, n), x, place)
        positive = ops.greater(ops.sum(x), popxl.constant(0.0))
        return ops.conditional(positive, bad, good, [x, place], [x, place])[0]

    session, run = _session(build)
    x = np.ones((4, 4), "float32")
    with session:
        np.testing.assert_array_equal(run(-x), -x)
        with pytest.raises(Exception, match="no entry 7") as caught:
            run(x)
        (note,) = caught.value.__notes__
        assert "RemoteLoad" in note
        assert "test_emit.py" in note
        np.testing.assert_array_equal(run(-x), -x)


def test_an_error_in_a_deep_block_names_its_op() -> None:
    session, run = _session(_deep)
    with session:
        bind = session._engine.backend.bind
        session._engine.backend.bind = lambda step: (
            (lambda *t: [][1]) if step.kind == "Sin" else bind(step)
        )
        with pytest.raises(IndexError) as caught:
            run(np.ones((4, 4), "float32"))
    (note,) = caught.value.__notes__
    assert "op Sin" in note
