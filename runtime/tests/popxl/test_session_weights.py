"""Weights of sessions: when they move, reading, writing."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.context import _execution_context
from popxl.fp8_utils import host_pow2scale_cast_to_fp8


def counter(ir: popxl.Ir) -> tuple[popxl.Variable, popxl.DeviceToHostStream]:
    """A variable that each run outputs and then increments."""
    with ir.main_graph, popxl.in_sequence():
        n, ys = popxl.variable(0, name="n"), popxl.d2h_stream((), popxl.int32)
        ops.host_store(ys, n)
        n += 1
    return n, ys


class TestLifecycle:
    def test_state_survives_between_contexts(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir)
        found = []
        for _ in range(2):
            with session:
                found += [int(session.run()[ys]) for _ in range(2)]
        assert found == [0, 1, 2, 3]
        assert session.get_tensor_data(n) == 4

    def test_values_are_read_before_any_context(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        assert make_session(ir).get_tensor_data(n) == 0

    def test_without_fetching_on_exit(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir, weights_to_host_on_exit=False)
        with session:
            session.run()
        assert session.get_tensor_data(n) == 0
        with session:
            assert session.run()[ys] == 0
            session.weights_to_host()
            session.run()
        assert session.get_tensor_data(n) == 1
        session.weights_to_host_on_exit = True
        with session:
            assert session.run()[ys] == 1
        assert session.get_tensor_data(n) == 2

    def test_an_exception_skips_the_fetch(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir)

        def fail() -> None:
            with session:
                session.run()
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert session.get_tensor_data(n) == 0
        with session:
            assert session.run()[ys] == 0

    def test_inner_contexts_move_nothing(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir)
        with session:
            session.run()
            with session:  # would send 0 again
                assert session.run()[ys] == 1
            assert n._value.data.host == 0  # would have been fetched
            assert session.run()[ys] == 2
        assert session.get_tensor_data(n) == 3

    def test_an_exception_in_an_inner_context(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        session = make_session(ir)
        with session:
            session.run()
            with pytest.raises(KeyError), session:
                raise KeyError
            assert session.is_attached
        assert session.get_tensor_data(n) == 1

    def test_sending_again_reverts(self, ir: popxl.Ir, make_session: Any):
        _, ys = counter(ir)
        session = make_session(ir)
        with session:
            session.run()
            session.weights_from_host()
            assert session.run()[ys] == 0

    def test_fragments_run_when_weights_move(self, ir: popxl.Ir, make_session: Any):
        """Ops of the from-host fragment run once per upload, those of the to-host one per fetch."""
        contexts = popxl.ExecutionContext
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((), popxl.int32, 2)
            counts = [popxl.remote_variable(0, buffer, i) for i in range(2)]
            n = popxl.variable(0)
            n += 1
            for i, context in enumerate(
                (contexts.WeightsFromHostFragment, contexts.WeightsToHostFragment)
            ):
                with _execution_context(context):
                    ops.remote_store(buffer, i, ops.remote_load(buffer, i) + 1)
        session = make_session(ir)
        with session:
            session.run()
            session.run()
        assert [int(session.get_tensor_data(v)) for v in (*counts, n)] == [1, 1, 2]
        with session:
            session.weights_to_host()
        assert [int(session.get_tensor_data(v)) for v in (*counts, n)] == [2, 3, 2]


class TestReading:
    def test_lazy(self, ir: popxl.Ir, make_session: Any, monkeypatch: pytest.MonkeyPatch):
        n, _ = counter(ir)
        session = make_session(ir)
        fetches = []
        fetch = session._engine.weights_to_host
        monkeypatch.setattr(
            session._engine, "weights_to_host", lambda: (fetches.append(1), fetch())
        )
        with session:
            session.get_tensor_data(n)
            assert len(fetches) == 0
            session.run()
            assert [int(session.get_tensor_data(n)) for _ in range(2)] == [1, 1]
            assert len(fetches) == 1
            session.run()
            assert session.get_tensor_data(n) == 2
            assert len(fetches) == 2

    def test_several(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        with ir.main_graph:
            c = popxl.constant([1.0, 2.0])
        session = make_session(ir)
        found = session.get_tensors_data([n, c])
        assert list(found) == [n, c]
        np.testing.assert_array_equal(found[c], [1.0, 2.0])
        assert session.get_tensors_data(t for t in [n, c]) == {}

    @pytest.mark.parametrize("what", ["op", "number", "stream"])
    def test_other_tensors(self, ir: popxl.Ir, make_session: Any, what: str):
        n, ys = counter(ir)
        with ir.main_graph as main:
            ir._pb_ir.getSessionOptions().enableInplaceAmbiguityChecking = False
            tensor = {"op": n + 1, "number": 3, "stream": main.get_tensor(ys.tensor_id)}[what]
        with pytest.raises(TypeError, match="is not of type Constant or Variable"):
            make_session(ir).get_tensor_data(tensor)

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "complex64", "complex128"])
    def test_dtypes_that_are_not_read(self, ir: popxl.Ir, make_session: Any, dtype: str):
        counter(ir)
        with ir.main_graph:
            c = popxl.constant(np.ones(2, dtype))
        with pytest.raises(ValueError, match="not supported for get_tensor_data retrieval"):
            make_session(ir).get_tensor_data(c)


class TestWriting:
    def test_detached(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir)
        session.write_variable_data(n, np.array(5, "int32"))
        assert session.get_tensor_data(n) == 5
        with session:
            assert session.run()[ys] == 5
        session.write_variable_data(n, 9)
        with session:
            assert session.run()[ys] == 9
        assert session.get_tensor_data(n) == 10

    def test_attached(self, ir: popxl.Ir, make_session: Any):
        n, ys = counter(ir)
        session = make_session(ir)
        with session:
            session.run()
            session.write_variable_data(n, np.array(5, "int32"))
            assert session.get_tensor_data(n) == 5
            assert session.run()[ys] == 5
        assert session.get_tensor_data(n) == 6

    def test_other_variables_revert_to_stale_values(self, ir: popxl.Ir, make_session: Any):
        _, ys = counter(ir)
        with ir.main_graph, popxl.in_sequence():
            other = popxl.variable(0)
            other += 1
        session = make_session(ir)
        with session:
            session.run()
            session.write_variable_data(other, 7)
            assert session.run()[ys] == 0
            session.weights_to_host()
            session.write_variable_data(other, 7)
            assert session.run()[ys] == 1
        assert session.get_tensor_data(other) == 8

    def test_the_source_is_copied(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph:
            w = popxl.variable([0.0, 0.0])
            w + 1.0
        session = make_session(ir)
        source = np.ones(2, "float32")
        view = source[:]
        view.flags.writeable = False
        session.write_variable_data(w, view)
        source[:] = 5
        np.testing.assert_array_equal(session.get_tensor_data(w), [1.0, 1.0])

    @pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
    def test_dtypes(self, ir: popxl.Ir, make_session: Any, dtype: str):
        with ir.main_graph:
            w = popxl.variable([0.0, 0.0])
            w + 1.0
        with pytest.raises(TypeError, match="must match the equivalent type"):
            make_session(ir).write_variable_data(w, np.zeros(2, dtype))

    @pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,)])
    def test_shapes(self, ir: popxl.Ir, make_session: Any, shape: tuple[int, ...]):
        with ir.main_graph:
            w = popxl.variable([0.0, 0.0])
            w + 1.0
        with pytest.raises(ValueError, match="must match the shape"):
            make_session(ir).write_variable_data(w, np.zeros(shape, "float32"))

    def test_other_tensors_and_values(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        with ir.main_graph:
            c = popxl.constant(1)
            fp8 = popxl.variable(1.0, popxl.float8_143)
            ops.reshape(fp8, (1,))
        session = make_session(ir)
        for tensor in (c, 3):
            with pytest.raises(TypeError, match="is not of type Variable"):
                session.write_variable_data(tensor, 1)
        with pytest.raises(AttributeError):
            session.write_variable_data(n, [1])
        with pytest.raises(TypeError):
            session.write_variable_data(fp8, 1.0)
        value = host_pow2scale_cast_to_fp8(np.array(2.0), popxl.float8_143)
        session.write_variable_data(fp8, value)
        assert session.get_tensor_data(fp8) == value

    def test_python_numbers_take_the_variables_dtype(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        session = make_session(ir)
        session.write_variable_data(n, 2.9)
        assert session.get_tensor_data(n) == 2

    def test_entries_before_a_failure_are_written(self, ir: popxl.Ir, make_session: Any):
        n, _ = counter(ir)
        with ir.main_graph:
            w = popxl.variable([0.0])
            w + 1.0
        session = make_session(ir)
        with pytest.raises(ValueError, match="must match the shape"):
            session.write_variables_data({n: 5, w: np.zeros(2, "float32")})
        assert session.get_tensor_data(n) == 5

    @pytest.mark.parametrize("replicas", [2, 4])
    def test_grouped(self, make_session: Any, rng: np.random.Generator, replicas: int):
        ir = popxl.Ir(replicas)
        with ir.main_graph, popxl.in_sequence():
            w = popxl.variable(
                np.zeros((replicas, 3), "float32"),
                replica_grouping=ir.replica_grouping(group_size=1),
            )
            ys = popxl.d2h_stream((3,), popxl.float32)
            ops.host_store(ys, w)
        session = make_session(ir)
        data = rng.normal(size=(replicas, 3)).astype("float32")
        with pytest.raises(ValueError, match="must match the shape"):
            session.write_variable_data(w, data[0])
        session.write_variable_data(w, data)
        with session:
            np.testing.assert_array_equal(session.run()[ys], data)
            session.write_variable_data(w, data * 2)
            np.testing.assert_array_equal(session.run()[ys], data * 2)
        np.testing.assert_array_equal(session.get_tensor_data(w), data * 2)

    def test_all_replicas_retrieval(self, make_session: Any):
        ir = popxl.Ir(4)
        with ir.main_graph:
            pairs, each = (ir.replica_grouping(group_size=n) for n in (2, 1))
            wide = popxl.variable(
                np.zeros((2, 3)), replica_grouping=pairs, retrieval_mode="all_replicas"
            )
            single = popxl.variable(
                np.zeros((4, 3)), replica_grouping=each, retrieval_mode="all_replicas"
            )
            wide + single
        session = make_session(ir)
        with pytest.raises(NotImplementedError):
            session.write_variable_data(wide, np.zeros((2, 3), "float32"))
        session.write_variable_data(single, np.ones((4, 3), "float32"))
        np.testing.assert_array_equal(session.get_tensor_data(single), np.ones((4, 3)))

    def test_uploading_replaces_what_all_replicas_had(self, make_session: Any):
        ir = popxl.Ir(2)
        with ir.main_graph, popxl.in_sequence():
            ids = popxl.variable([1.0, 2.0], replica_grouping=ir.replica_grouping(group_size=1))
            w = popxl.variable(0.0, retrieval_mode="all_replicas")
            w += ids
        session = make_session(ir)
        with session:
            session.run()
        np.testing.assert_array_equal(session.get_tensor_data(w), [1.0, 2.0])
        with session:  # each group's first value goes to the device
            np.testing.assert_array_equal(session.get_tensor_data(w), [1.0, 1.0])
            session.run()
        np.testing.assert_array_equal(session.get_tensor_data(w), [2.0, 3.0])

    def test_remote(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((2,), popxl.float32)
            w = popxl.remote_variable([0.0, 0.0], buffer)
            ys = popxl.d2h_stream((2,), popxl.float32)
            ops.host_store(ys, ops.remote_load(buffer, 0))
        session = make_session(ir)
        with session:
            session.write_variable_data(w, np.array([1, 2], "float32"))
            np.testing.assert_array_equal(session.run()[ys], [1.0, 2.0])
        session.write_variable_data(w, np.array([3, 4], "float32"))
        with session:
            np.testing.assert_array_equal(session.run()[ys], [3.0, 4.0])
