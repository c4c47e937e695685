"""Sessions: construction, devices, contexts, inputs and outputs of runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from popxl import ops

DETACHED = "Must be attached to device before calling a runtime function"


def echo(ir: popxl.Ir, shape: tuple[int, ...], dtype: popxl.dtype = popxl.float32) -> Any:
    """(input, output) of a program that copies its input."""
    with ir.main_graph, popxl.in_sequence():
        xs, ys = popxl.h2d_stream(shape, dtype, "x"), popxl.d2h_stream(shape, dtype, "y")
        ops.host_store(ys, ops.host_load(xs))
    return xs, ys


class TestConstruction:
    @pytest.mark.parametrize("device", ["cpu", "ipu_model", "ipu_hw"])
    def test_devices(self, ir: popxl.Ir, make_session: Any, device: str):
        xs, ys = echo(ir, (2,))
        with make_session(ir, device) as session:
            np.testing.assert_array_equal(session.run({xs: [1.0, 2.0]})[ys], [1.0, 2.0])

    @pytest.mark.parametrize("device", ["gpu", "", None, 3])
    def test_unknown_devices(self, ir: popxl.Ir, device: Any):
        echo(ir, ())
        with pytest.raises(ValueError, match="Incorrect device type provided"):
            popxl.Session(ir, device)

    def test_cpu_is_one_device(self):
        ir = popxl.Ir(3)
        echo(ir, ())
        with pytest.raises(ValueError, match=r"needs 4 devices.*multiple devices .*not supported"):
            popxl.Session(ir, "cpu")

    def test_cpu_has_one_ipu(self, ir: popxl.Ir):
        with ir.main_graph, popxl.ipu(1):
            popxl.constant(1) + 1
        with pytest.raises(ValueError, match=r"multiple devices .*not supported"):
            popxl.Session(ir, "cpu")
        popxl.Session(ir, "ipu_model")

    def test_graphs_that_nothing_calls_do_not_count(self, ir: popxl.Ir):
        xs, _ = echo(ir, ())
        with ir.main_graph, popxl.ipu(1):
            ir.create_graph(lambda: popxl.constant(1) + 1)
        assert popxl.Session(ir, "cpu").expected_inputs() == {xs}

    def test_offline_device(self, ir: popxl.Ir, monkeypatch: pytest.MonkeyPatch):
        echo(ir, ())
        monkeypatch.setenv("POPXL_OFFLINE_DEVICE", "some_system")
        session = popxl.Session(ir, "ipu_hw")
        with pytest.raises(RuntimeError, match="Could not attach"), session:
            pass
        assert not session.is_attached

    def test_device_info(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (), popxl.int32)
        with make_session(ir, popart.DeviceInfo()) as session:
            assert session.run({xs: 3})[ys] == 3

    def test_attached_device(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph, popxl.in_sequence():
            w = popxl.variable(1)
            w += 1
        device = popart.DeviceManager().acquireAvailableDevice()
        session = make_session(ir, device)
        assert session.is_attached
        session.run()
        with session:
            session.run()
        assert session.is_attached
        assert session.get_tensor_data(w) == 3

    @pytest.mark.parametrize("content", ["nothing", "variable", "constant", "uncalled graph"])
    def test_nothing_remains(self, ir: popxl.Ir, content: str):
        with ir.main_graph:
            if content == "variable":
                popxl.variable(1)
            elif content == "constant":
                popxl.constant(1)
            elif content == "uncalled graph":
                ir.create_graph(lambda: popxl.constant(1) + 1)
        with pytest.raises(RuntimeError, match="has no graphs"):
            popxl.Session(ir)

    def test_remote_variables_remain(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph:
            kept = popxl.remote_variable(5, popxl.remote_buffer((), popxl.int32))
        with make_session(ir) as session:
            session.run()
        assert session.get_tensor_data(kept) == 5

    def test_unused_variables_and_graphs_are_removed(self, ir: popxl.Ir):
        with ir.main_graph as main:
            used, unused = popxl.variable(1), popxl.variable(1)
            remote = popxl.remote_variable(1, popxl.remote_buffer((), popxl.int32))
            stream = popxl.h2d_stream((), popxl.int32)
            uncalled = ir.create_graph(lambda: ops.host_load(stream))
            used + 1
        session = popxl.Session(ir)
        assert main.variables == (used, remote)
        assert unused not in main
        assert session.expected_inputs() == set()
        assert uncalled.id not in [g.id for g in ir._pb_ir.getAllGraphs()]

    def test_transfers_are_those_of_its_construction(self, ir: popxl.Ir, make_session: Any):
        ir.num_host_transfers = 2
        xs, ys = echo(ir, ())
        session = make_session(ir)
        ir.num_host_transfers = 3
        with session:
            assert session.run({xs: [1.0, 2.0]})[ys].shape == (2,)

    def test_properties(self, ir: popxl.Ir):
        echo(ir, ())
        session = popxl.Session(ir, weights_to_host_on_exit=False)
        assert session.ir is session.ir_ is ir
        assert session.is_attached is False
        assert session.weights_to_host_on_exit is False
        session.weights_to_host_on_exit = True

    def test_a_program_that_is_not_well_formed(self, ir: popxl.Ir):
        with ir.main_graph as main:
            popxl.constant(1) + 1
            main._record.ops[0].kind = "NoSuchOp"
        with pytest.raises(popart.popart_exception, match="NoSuchOp"):
            popxl.Session(ir)


class TestContext:
    def test_attachment(self, ir: popxl.Ir, make_session: Any):
        echo(ir, ())
        session = make_session(ir)
        with session as entered:
            assert entered is session
            assert session.is_attached
            with session:
                assert session.is_attached
            assert session.is_attached
        assert not session.is_attached

    def test_detached(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, ())
        session = make_session(ir)
        for call in (
            lambda: session.run({xs: 1.0}),
            lambda: session.run(),
            lambda: session.run_with_outputs({xs: 1.0}, {ys: np.zeros((), "float32")}),
            session.weights_to_host,
            session.weights_from_host,
        ):
            with pytest.raises(ValueError, match=DETACHED):
                call()

    def test_a_failure_on_entering_leaves_it_detached(
        self, ir: popxl.Ir, make_session: Any, monkeypatch: pytest.MonkeyPatch
    ):
        echo(ir, ())
        session = make_session(ir)
        with monkeypatch.context() as patch:
            patch.setattr(session._engine, "weights_from_host", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                session.__enter__()
        assert not session.is_attached
        with session:
            assert session.is_attached
        assert not session.is_attached

    def test_exceptions_propagate(self, ir: popxl.Ir, make_session: Any):
        echo(ir, ())
        session = make_session(ir)
        with pytest.raises(KeyError), session:
            raise KeyError
        assert not session.is_attached


class TestInputs:
    @pytest.mark.parametrize(
        "value",
        [[1.0, 2.0], np.array([1.0, 2.0]), np.array([1, 2], "float32"), torch.tensor([1.0, 2.0])],
        ids=["list", "float64", "float32", "torch"],
    )
    def test_array_likes(self, ir: popxl.Ir, make_session: Any, value: Any):
        xs, ys = echo(ir, (2,))
        with make_session(ir) as session:
            found = session.run({xs: value})
        assert list(found) == [ys]
        assert found[ys].dtype == np.float32
        np.testing.assert_array_equal(found[ys], [1.0, 2.0])

    def test_strides(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (2, 3))
        value = np.arange(12, dtype="float32").reshape(3, 4)[:, ::2].T
        with make_session(ir) as session:
            np.testing.assert_array_equal(session.run({xs: value})[ys], value)
            same = np.broadcast_to(np.float32(2), (2, 3))
            np.testing.assert_array_equal(session.run({xs: same})[ys], same)

    def test_results_are_fresh(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (2,))
        value = np.ones(2, "float32")
        with make_session(ir) as session:
            first = session.run({xs: value})[ys]
            second = session.run({xs: value * 2})[ys]
        value[:] = 7
        np.testing.assert_array_equal(first, [1.0, 1.0])
        np.testing.assert_array_equal(second, [2.0, 2.0])

    def test_state_does_not_alias_an_input(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph, popxl.in_sequence():
            xs, ys = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
            w = popxl.variable([0.0, 0.0])
            ops.host_store(ys, w)
            ops.var_updates.copy_var_update_(w, ops.host_load(xs))
        value = np.ones(2, "float32")
        with make_session(ir) as session:
            session.run({xs: value})
            value[:] = 7
            np.testing.assert_array_equal(session.run({xs: value})[ys], [1.0, 1.0])

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [({}, "input"), (None, "input"), ({"a": 1}, "Unexpected input"), ({1: 2}, "input")],
    )
    def test_streams(self, ir: popxl.Ir, make_session: Any, inputs: Any, message: str):
        echo(ir, ())
        with make_session(ir) as session, pytest.raises(ValueError, match=message):
            session.run(inputs)

    def test_an_extra_stream(self, ir: popxl.Ir, make_session: Any):
        xs, _ = echo(ir, ())
        with ir.main_graph:
            extra = popxl.h2d_stream((), popxl.float32)
        with make_session(ir) as session:
            with pytest.raises(ValueError, match="Unexpected input"):
                session.run({xs: 1.0, extra: 1.0})
            with pytest.raises(ValueError, match="Missing input"):
                session.run({})

    def test_expected_inputs(self, ir: popxl.Ir):
        xs, _ = echo(ir, ())
        with ir.main_graph:
            popxl.h2d_stream((), popxl.float32)
        assert popxl.Session(ir).expected_inputs() == {xs}

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [
            (popxl.float16, np.zeros(2, "float32")),
            (popxl.float16, [1.0, 2.0]),
            (popxl.float32, np.zeros(2, "float16")),
            (popxl.float32, [1, 2]),
            (popxl.uint32, np.zeros(2, "int32")),
            (popxl.bool, [0, 1]),
        ],
    )
    def test_inputs_are_not_cast(
        self, ir: popxl.Ir, make_session: Any, dtype: popxl.dtype, value: Any
    ):
        xs, _ = echo(ir, (2,), dtype)
        message = "Type discrepancy"
        with (
            make_session(ir) as session,
            pytest.raises(popart.popart_runtime_error, match=message),
        ):
            session.run({xs: value})

    def test_without_downcast(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (2,))
        with make_session(ir) as session:
            with pytest.raises(popart.popart_runtime_error, match="Type discrepancy"):
                session.run({xs: np.zeros(2)}, downcast_inputs=False)
            np.testing.assert_array_equal(session.run({xs: np.ones(2)})[ys], [1.0, 1.0])

    def test_int64_for_int32(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (2,), popxl.int32)
        with make_session(ir) as session:
            for downcast in (True, False):
                found = session.run({xs: np.array([3, 4])}, downcast_inputs=downcast)[ys]
                np.testing.assert_array_equal(found, [3, 4])


class TestShapes:
    @pytest.mark.parametrize(
        ("transfers", "replicas", "stream", "array", "message"),
        [
            (1, 1, (2,), (3,), "Shape mismatch"),
            (1, 1, (2,), (1, 2), "Shape mismatch"),
            (1, 1, (2, 1), (2,), "Shape mismatch"),
            (3, 1, (2,), (2, 2), "is not large enough"),
            (3, 1, (1,), (2, 1), "is not large enough"),
            (3, 1, (2,), (3, 3), "Shape mismatch"),
            (1, 2, (3,), (3, 3), "is the wrong size"),
            (1, 2, (3,), (1, 3), "is the wrong size"),
            (1, 2, (3,), (2, 4), "Shape mismatch"),
            (3, 2, (4,), (2, 2, 4), "is not large enough"),
            (3, 2, (4,), (3, 3, 4), "is the wrong size"),
            (3, 2, (4,), (3, 2, 3), "Shape mismatch"),
            (3, 2, (4,), (4,), "Shape mismatch"),
            # one element for streams of several, which once read out of bounds
            (1, 1, (5,), (), "Shape mismatch"),
            (1, 1, (5,), (1,), "Shape mismatch"),
            (3, 1, (5,), (3,), "Shape mismatch"),
        ],
    )
    def test_errors(
        self,
        make_session: Any,
        transfers: int,
        replicas: int,
        stream: Any,
        array: Any,
        message: str,
    ):
        ir = popxl.Ir(replicas)
        ir.num_host_transfers = transfers
        xs, ys = echo(ir, stream)
        with make_session(ir) as session:
            with pytest.raises(ValueError, match=message):
                session.run({xs: np.zeros(array, "float32")})
            outputs = {ys: np.zeros(array, "float32")}
            shape = tuple(n for n in (transfers, replicas) if n > 1) + stream
            with pytest.raises(ValueError, match=message):
                session.run_with_outputs({xs: np.zeros(shape, "float32")}, outputs)

    @pytest.mark.parametrize(
        ("transfers", "replicas", "stream", "array"),
        [
            (1, 1, (1,), ()),
            (1, 1, (), (1,)),
            (1, 1, (1, 1), (1,)),
            (1, 1, (1,), (1, 1, 1)),
            (3, 1, (1,), (3,)),
            (3, 1, (), (3, 1)),
            (1, 2, (1,), (2,)),
            (3, 2, (1,), (3, 2)),
            (3, 2, (), (3, 2, 1)),
        ],
    )
    def test_single_elements_of_another_rank(
        self, make_session: Any, transfers: int, replicas: int, stream: Any, array: Any
    ):
        ir = popxl.Ir(replicas)
        ir.num_host_transfers = transfers
        with ir.main_graph, popxl.in_sequence():
            xs, ys = (make(stream, popxl.float32) for make in (popxl.h2d_stream, popxl.d2h_stream))

            def body():
                ops.host_store(ys, ops.host_load(xs))

            ops.repeat(ir.create_graph(body), transfers)
        data = np.arange(1, transfers * replicas + 1, dtype="float32").reshape(array)
        with make_session(ir) as session:
            found = session.run({xs: data})[ys]
        assert found.shape == tuple(n for n in (transfers, replicas) if n > 1) + stream
        np.testing.assert_array_equal(found.reshape(-1), data.reshape(-1))

    def test_more_rows_than_transfers_of_single_elements(self, ir: popxl.Ir, make_session: Any):
        ir.num_host_transfers = 2
        xs, ys = echo(ir, (1,))
        with make_session(ir) as session:
            assert session.run({xs: np.array([5.0, 6.0, 7.0])})[ys][0] == 5.0


class TestOutputs:
    def test_create_host_outputs(self):
        ir = popxl.Ir(2)
        ir.num_host_transfers = 3
        _, ys = echo(ir, (4,), popxl.float16)
        outputs = popxl.Session(ir, "ipu_hw").create_host_outputs()
        assert list(outputs) == [ys]
        assert (outputs[ys].shape, outputs[ys].dtype) == ((3, 2, 4), np.float16)

    def test_arrays_are_filled_in_place(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, (2,))
        array = np.zeros((2, 2), "float32")
        with make_session(ir) as session:
            assert session.run_with_outputs({xs: [1.0, 2.0]}, {ys: array[:, 0]}) is None
        np.testing.assert_array_equal(array, [[1.0, 0.0], [2.0, 0.0]])

    def test_streams(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, ())
        with ir.main_graph:
            extra = popxl.d2h_stream((), popxl.float32)
        array = np.zeros((), "float32")
        with make_session(ir) as session:
            for outputs in (None, {}):
                with pytest.raises(ValueError, match="output"):
                    session.run_with_outputs({xs: 1.0}, outputs)
            with pytest.raises(ValueError, match="Unexpected output"):
                session.run_with_outputs({xs: 1.0}, {ys: array, extra: array})

    def test_another_dtype(self, ir: popxl.Ir, make_session: Any):
        xs, ys = echo(ir, ())
        message = "Type discrepancy"
        with (
            make_session(ir) as session,
            pytest.raises(popart.popart_runtime_error, match=message),
        ):
            session.run_with_outputs({xs: 1.0}, {ys: np.zeros((), "float16")})

    def test_no_streams(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph, popxl.in_sequence():
            w = popxl.variable(1)
            w += 1
        with make_session(ir) as session:
            assert session.run() == {}
            assert session.create_host_outputs() == {}
            session.run_with_outputs()
        assert session.get_tensor_data(w) == 3

    def test_an_error_in_a_run_names_the_op(self, ir: popxl.Ir, make_session: Any):
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((), popxl.float32)
            xs, ys = popxl.h2d_stream((), popxl.uint32), popxl.d2h_stream((), popxl.float32)
            ops.host_store(ys, ops.remote_load(buffer, ops.host_load(xs)))
        with make_session(ir) as session:
            with pytest.raises(popart.popart_runtime_error) as caught:
                session.run({xs: np.array(5, "uint32")})
            assert "RemoteLoad" in caught.value.__notes__[0]
            assert __file__ in caught.value.__notes__[0]
            assert session.run({xs: np.array(0, "uint32")})[ys] == 0
