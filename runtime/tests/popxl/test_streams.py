"""Host streams: attributes, loads, stores, cursors."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl.streams import Stream

Rng = np.random.Generator


@pytest.mark.parametrize("kind", [Stream, popxl.HostToDeviceStream, popxl.DeviceToHostStream])
def test_constructors(kind: Any):
    with pytest.raises(NotImplementedError):
        kind()


def test_attributes(main: popxl.Graph):
    x = popxl.h2d_stream([2, 3], popxl.float16)
    y = popxl.d2h_stream((), popxl.int32, name="y")
    assert (x.shape, x.dtype, x.tensor_id) == ((2, 3), popxl.float16, "h2d_stream")
    assert x.spec == popxl.TensorSpec((2, 3), popxl.float16)
    assert y.tensor_id == "y"
    assert popxl.d2h_stream((), popxl.int32).tensor_id == "d2h_stream"
    assert str(x) == "HostToDeviceStream Tensor[h2d_stream popxl.dtypes.float16 (2, 3)]"
    assert str(y) == "DeviceToHostStream Tensor[y popxl.dtypes.int32 ()]"


def test_identity(main: popxl.Graph):
    a, b = (popxl.h2d_stream((), popxl.float32, "s") for _ in range(2))
    assert a.tensor_id != b.tensor_id
    assert a != b
    assert a == a
    assert a != "s"
    assert {a: 1, b: 2}[b] == 2


def test_streams_belong_to_the_main_graph(ir: popxl.Ir):
    with ir.create_empty_graph("g"):
        stream = popxl.h2d_stream((), popxl.float32, "s")
    assert stream.tensor_id == "s"
    assert "s" in [t.id for t in ir.main_graph.tensors]


def test_names_of_loads(main: popxl.Graph):
    stream = popxl.h2d_stream((2,), popxl.float16, "s")
    plain, named = ops.host_load(stream), ops.host_load(stream, "mine")
    assert (plain.name, plain.shape, plain.dtype) == ("s_hostload", (2,), popxl.float16)
    assert named.name == "mine_hostload"
    names = {t.name for t in main.tensors}
    assert {"s_init", "mine_init"} <= names


def test_store_errors(main: popxl.Graph):
    stream = popxl.d2h_stream((2,), popxl.float32)
    with pytest.raises(ValueError, match="does not match dtype of provided tensor"):
        ops.host_store(stream, popxl.variable([1, 2]))
    with pytest.raises(ValueError, match="does not match shape of provided tensor"):
        ops.host_store(stream, popxl.variable([1.0]))
    with pytest.raises(TypeError, match="is not a Tensor"):
        ops.host_store(stream, 1.0)  # type: ignore[arg-type]


def loop_of_loads(ir: popxl.Ir, transfers: int) -> tuple[Any, Any]:
    """(input, output) of a program that doubles one element per iteration."""
    ir.num_host_transfers = transfers
    with ir.main_graph, popxl.in_sequence():
        xs, ys = popxl.h2d_stream((3,), popxl.float32), popxl.d2h_stream((3,), popxl.float32)

        def body():
            ops.host_store(ys, ops.host_load(xs) * 2.0)

        ops.repeat(ir.create_graph(body), transfers)
    return xs, ys


@pytest.mark.parametrize("varies", [True, False])
@pytest.mark.parametrize("transfers", [1, 5])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_axes(make_session: Any, rng: Rng, replicas: int, transfers: int, varies: bool):
    """(transfers, replicas, data); axes of size 1 are left out."""
    ir = popxl.Ir(replicas)
    xs, ys = loop_of_loads(ir, transfers)
    data = rng.normal(size=(transfers, replicas, 3)).astype("float32")
    if not varies:
        data[:] = data[:, :1]
    shape = tuple(n for n in (transfers, replicas) if n > 1)
    with make_session(ir) as session:
        for _ in range(2):  # cursors start anew in each run
            found = session.run({xs: data.reshape(*shape, 3)})[ys]
            np.testing.assert_array_equal(found, 2 * data.reshape(*shape, 3))


def test_the_main_graph_runs_once_whatever_the_transfers(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    ir.num_host_transfers = 3
    n = popxl.variable(0)
    n += 1
    with make_session(ir) as session:
        session.run()
    assert session.get_tensor_data(n) == 1


def test_order_on_one_stream(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    ir.num_host_transfers = 2
    xs, other = (popxl.h2d_stream((), popxl.int32) for _ in range(2))
    ys = popxl.d2h_stream((), popxl.int32)
    first, second = ops.host_load(xs), ops.host_load(xs)
    ops.host_store(ys, first * 10 + second)
    ops.host_store(ys, ops.host_load(other))
    with make_session(ir) as session:
        found = session.run({xs: [1, 2], other: [7, 8]})[ys]
    np.testing.assert_array_equal(found, [12, 7])


def test_a_load_that_nothing_uses_counts(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    ir.num_host_transfers = 2
    xs, ys = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
    ops.host_load(xs)
    ops.host_store(ys, ops.host_load(xs))
    with make_session(ir) as session:
        assert session.run({xs: [5, 6]})[ys][0] == 6


def test_larger_arrays_give_a_row_per_load(ir: popxl.Ir, make_session: Any):
    ir.num_host_transfers = 2
    with ir.main_graph, popxl.in_sequence():
        xs, ys = popxl.h2d_stream((1,), popxl.int32), popxl.d2h_stream((1,), popxl.int32)

        def body():
            ops.host_store(ys, ops.host_load(xs))

        ops.repeat(ir.create_graph(body), 3)
    with make_session(ir) as session:
        outputs = {ys: np.zeros((4, 1), "int32")}
        session.run_with_outputs({xs: np.array([[1], [2], [3], [4]])}, outputs)
        np.testing.assert_array_equal(outputs[ys], [[1], [2], [3], [0]])


def test_cursors_wrap(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    ir.num_host_transfers = 2
    xs, ys = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
    for _ in range(3):
        ops.host_store(ys, ops.host_load(xs))
    with make_session(ir) as session:
        found = session.run({xs: [5, 6]})[ys]
    # The third load reads element 0 again, the third store writes it again.
    np.testing.assert_array_equal(found, [5, 6])


def test_extra_stores_overwrite_from_the_start(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    ir.num_host_transfers = 2
    ys = popxl.d2h_stream((), popxl.int32)
    for value in (1, 2, 3):
        ops.host_store(ys, popxl.constant(value))
    with make_session(ir) as session:
        np.testing.assert_array_equal(session.run()[ys], [3, 2])


def test_elements_that_no_store_reaches_are_kept(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any
):
    ir.num_host_transfers = 3
    ys = popxl.d2h_stream((), popxl.int32)
    ops.host_store(ys, popxl.constant(1))
    outputs = {ys: np.full(3, 9, "int32")}
    with make_session(ir) as session:
        session.run_with_outputs(None, outputs)
    np.testing.assert_array_equal(outputs[ys], [1, 9, 9])


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint32", "float16", "float32", "uint8"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_dtypes(make_session: Any, rng: Rng, dtype: str, replicas: int):
    ir = popxl.Ir(replicas)
    with ir.main_graph, popxl.in_sequence():
        kind = popxl.dtype.from_name(dtype)
        xs, ys = popxl.h2d_stream((4,), kind), popxl.d2h_stream((4,), kind)
        ops.host_store(ys, ops.identity(ops.host_load(xs)))
    data = (rng.normal(size=(replicas, 4) if replicas > 1 else 4) * 3).clip(0).astype(dtype)
    with make_session(ir) as session:
        found = session.run({xs: data})[ys]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, data)


def test_float8(ir: popxl.Ir, main: popxl.Graph, make_session: Any, rng: Rng):
    from popxl.fp8_utils import host_pow2scale_cast_to_fp8

    data = host_pow2scale_cast_to_fp8(rng.normal(size=4), popxl.float8_152)
    xs, ys = popxl.h2d_stream((4,), popxl.float8_152), popxl.d2h_stream((4,), popxl.float8_152)
    ops.host_store(ys, ops.reshape(ops.host_load(xs), (4,)))
    with make_session(ir) as session:
        found = session.run({xs: data})[ys]
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found, data)
