"""Sessions over their life: contexts, patterns of equal replicas, state, errors."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.plan.steps import Step


def _accumulator(replicas: int) -> tuple[popxl.Ir, popxl.HostToDeviceStream, popxl.tensor.Variable]:
    """total += x, on every replica by itself; gives total's transpose."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        total = popxl.variable(
            np.zeros((2, 3), "float32"),
            replica_grouping=ir.replica_grouping(group_size=replicas),
            retrieval_mode="all_replicas",
        )
        stream = popxl.h2d_stream((2, 3), popxl.float32)
        ops.add_(total, ops.host_load(stream))
        out = popxl.d2h_stream((3, 2), popxl.float32, "out")
        ops.host_store(out, total.T)
    return ir, stream, total


def test_runs_with_equal_and_different_replicas_mix_over_contexts() -> None:
    ir, stream, _ = _accumulator(2)
    different = np.arange(12, dtype="float32").reshape(2, 2, 3)
    equal = np.ones((2, 2, 3), "float32")
    session = popxl.Session(ir, "ipu_hw", weights_to_host_on_exit=False)
    for _ in range(3):  # from zero again: nothing is fetched
        with session:
            got = [next(iter(session.run({stream: x}).values())) for x in (different, equal)]
        np.testing.assert_array_equal(got[0], different.transpose(0, 2, 1))
        np.testing.assert_array_equal(got[1], different.transpose(0, 2, 1) + 1)


def test_remote_entries_mix_over_contexts() -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2, 3), popxl.float32)
        popxl.remote_variable(np.zeros((2, 3), "float32"), buffer)
        stream = popxl.h2d_stream((2, 3), popxl.float32)
        kept = ops.remote_load(buffer, 0) + ops.host_load(stream)
        ops.remote_store(buffer, 0, kept)
        out = popxl.d2h_stream((3, 2), popxl.float32)
        ops.host_store(out, kept.T)
    different = np.arange(12, dtype="float32").reshape(2, 2, 3)
    session = popxl.Session(ir, "ipu_hw", weights_to_host_on_exit=False)
    for _ in range(3):
        with session:
            session.run({stream: different})
            got = session.run({stream: np.ones((2, 2, 3), "float32")})[out]
        np.testing.assert_array_equal(got, different.transpose(0, 2, 1) + 1)


def test_outputs_may_lie_where_inputs_lay() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((4,), popxl.float32)
        first = popxl.d2h_stream((4,), popxl.float32)
        second = popxl.d2h_stream((4,), popxl.float32)
        x = ops.host_load(stream)
        ops.host_store(first, x + 1.0)
        ops.host_store(second, x * 2.0)
    array, other = np.arange(4, dtype="float32"), np.zeros(4, "float32")
    with popxl.Session(ir) as session:
        session.run_with_outputs({stream: array}, {first: array, second: other})
    np.testing.assert_array_equal(array, [1, 2, 3, 4])
    np.testing.assert_array_equal(other, [0, 2, 4, 6])


def test_a_chain_of_thousands_of_writes() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(0.0)
        one = popxl.constant(1.0)
        y: popxl.Tensor = x
        for _ in range(1500):
            y = ops.add_(y, one)
    session = popxl.Session(ir)
    with session:
        session.run()
    assert session.get_tensor_data(x) == 1500


def test_values_die_with_the_run(engine: str) -> None:
    if engine == "interpreter":
        pytest.skip("its frames are Python's")
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((8,), popxl.float32)
        x = ops.host_load(stream)

        def body(carried: popxl.Tensor, unused: popxl.Tensor, again: popxl.Tensor):
            return carried + again, carried, again

        y, _, _ = ops.repeat(ir.create_graph(body, x, x, x), 3, x, x * 2.0, x * 3.0)
        yes = ir.create_graph(lambda t: (t + 1.0, t), x)
        no = ir.create_graph(lambda t: (t, t * 2.0), x)
        z, _ = ops.conditional(ops.greater(ops.sum(y), ops.sum(x)), yes, no, [y], [y])
        out = popxl.d2h_stream((8,), popxl.float32)
        ops.host_store(out, z)
    made: list[weakref.ref] = []
    with popxl.Session(ir) as session:
        bind = session._engine.backend.bind

        def watched(step: Step) -> Callable[..., torch.Tensor]:
            function = bind(step)

            def run(*tensors: torch.Tensor) -> torch.Tensor:
                result = function(*tensors)
                made.append(weakref.ref(result))
                return result

            return run

        session._engine.backend.bind = watched
        session.run({stream: np.ones(8, "float32")})
        assert len(made) > 5
        assert not any(tensor() is not None for tensor in made)


def test_a_failing_run_names_the_line_and_the_next_one_works() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=2)
        popxl.remote_variable(np.ones(2, "float32"), buffer, 1)
        stream = popxl.h2d_stream((), popxl.int32)
        entry = ops.host_load(stream)
        load = ir.create_graph(lambda i: ops.remote_load(buffer, i), entry)
        (loaded,) = ops.call(load, entry)
        out = popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(out, loaded)
    with popxl.Session(ir) as session:
        with pytest.raises(Exception, match="no entry 7") as caught:
            session.run({stream: np.int32(7)})
        (note,) = caught.value.__notes__
        assert "RemoteLoad" in note
        assert "test_lifecycle.py" in note
        np.testing.assert_array_equal(session.run({stream: np.int32(1)})[out], [1, 1])


def _plans(build: Callable[[popxl.Ir], popxl.HostToDeviceStream], runs: int) -> int:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        stream = build(ir)
    rng = np.random.default_rng(0)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(runs):
            session.run({stream: rng.normal(size=(2, *stream.shape)).astype("float32")})
        return len({id(plan) for plan, _ in session._engine._plans.values()})


def test_one_plan_serves_many_runs(engine: str) -> None:
    if engine == "interpreter":
        pytest.skip("it has no plans")

    def build(ir: popxl.Ir) -> popxl.HostToDeviceStream:
        total = popxl.variable(np.zeros(3, "float32"))
        stream = popxl.h2d_stream((3,), popxl.float32)
        ops.add_(total, ops.host_load(stream))
        return stream

    assert _plans(build, runs=4) == 1


def test_windows_of_an_entry_that_differ_by_replica_in_some_runs() -> None:
    """An entry written in place is one tensor for all replicas until a run makes it several."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2, 3), popxl.float32, entries=2)
        stream = popxl.h2d_stream((1, 3), popxl.float32)

        def write(entry: popxl.Tensor, row: popxl.Tensor) -> popxl.Tensor:
            kept = ops.remote_load(buffer, entry)
            place = popxl.constant([1])
            kept = ops.dynamic_update(kept, place, row, [0], [1], no_overlap=True)
            ops.remote_store(buffer, entry, kept)
            return ops.sum(kept)

        given = [popxl.constant(1), ops.host_load(stream)]
        total, whole = popxl.d2h_stream((), popxl.float32), popxl.d2h_stream((2, 3), popxl.float32)
        ops.host_store(total, ops.call(ir.create_graph(write, *given), *given)[0])
        ops.host_store(whole, ops.remote_load(buffer, 1))
    equal = np.ones((2, 1, 3), "float32")
    different = np.arange(6, dtype="float32").reshape(2, 1, 3)
    session = popxl.Session(ir, "ipu_hw")
    for _ in range(2):
        with session:
            for x in (equal, different, equal * 2, different):
                found = session.run({stream: x})
                np.testing.assert_array_equal(found[total], x.sum((1, 2)))
                np.testing.assert_array_equal(found[whole][:, 1:], x)
                assert not found[whole][:, 0].any()
