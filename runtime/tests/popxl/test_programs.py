"""Programs of the shapes that real ones have."""

# No `from __future__ import annotations`: by-reference inputs are found by their annotation.

from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

RTOL = 1e-5


@pytest.mark.parametrize("replicas", [1, 2])
def test_streaming_through_a_layer_loop(make_session: Any, replicas: int):
    layers, rows, width = 4, 2, 8
    ir = popxl.Ir(replicas)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((width, width), popxl.float32, entries=layers)
        for i in range(layers):
            popxl.remote_variable(np.eye(width, dtype="float32") * (i + 1), buffer, i)

        def layer(h, i):
            return h @ ops.remote_load(buffer, i), i + 1

        xs = popxl.h2d_stream((rows, width), popxl.float32)
        ys = popxl.d2h_stream((rows, width), popxl.float32)
        x, first = ops.host_load(xs), popxl.constant(0, popxl.uint32)
        h, _ = ops.repeat(ir.create_graph(layer, x, first), layers, x, first)
        ops.host_store(ys, h)
    shape = (replicas, rows, width) if replicas > 1 else (rows, width)
    with make_session(ir) as session:
        for scale in (1, 3):
            found = session.run({xs: np.full(shape, scale, "float32")})[ys]
            np.testing.assert_array_equal(found, np.full(shape, 24.0 * scale))


@pytest.mark.parametrize("varies", [False, True])
def test_tensor_parallel_linear(make_session: Any, rng: np.random.Generator, varies: bool):
    ir = popxl.Ir(replication=4)
    together = ir.replica_grouping(stride=1, group_size=4)
    each = ir.replica_grouping(group_size=1)
    assert together.transpose() == each
    weights = rng.normal(size=(4, 6, 2)).astype("float32")
    with ir.main_graph, popxl.in_sequence():
        w = popxl.variable(weights, replica_grouping=each)
        xs = popxl.h2d_stream((3, 6), popxl.float32)
        y = ops.host_load(xs) @ w
        full = ops.collectives.replicated_all_gather(y, axis=1, group=together)
        part = ops.collectives.replicated_all_reduce(y, group=together)
        out_full, out_part = (popxl.d2h_stream(t.shape, t.dtype) for t in (full, part))
        ops.host_store(out_full, full)
        ops.host_store(out_part, part)
    assert (w.shape, w.shape_on_host) == ((6, 2), (4, 6, 2))
    assert (full.shape, part.shape) == ((3, 8), (3, 2))
    x = rng.normal(size=(4, 3, 6)).astype("float32")
    if not varies:
        x[:] = x[0]
    with make_session(ir) as session:
        found = session.run({xs: x})
    products = x.astype("float64") @ weights
    wanted = np.concatenate(list(products), axis=1)
    np.testing.assert_allclose(found[out_full], np.stack([wanted] * 4), RTOL, RTOL)
    np.testing.assert_allclose(found[out_part], np.stack([products.sum(0)] * 4), RTOL, RTOL)


def test_state_through_a_reference(ir: popxl.Ir, make_session: Any):
    def bump(n: popxl.TensorByRef):
        ops.add_(n, popxl.constant(1, n.dtype))

    with ir.main_graph, popxl.in_sequence():
        n = popxl.variable(0, popxl.int32)
        ops.repeat(ir.create_graph(bump, n), 3, n)
    with make_session(ir) as session:
        session.run()
    assert session.get_tensor_data(n) == 3


@pytest.mark.parametrize("replicas", [1, 2])
def test_several_micro_batches_per_run(make_session: Any, rng: np.random.Generator, replicas: int):
    ir = popxl.Ir(replicas)
    ir.num_host_transfers = 5
    with ir.main_graph, popxl.in_sequence():
        xs, ys = (make((2, 3), popxl.float32) for make in (popxl.h2d_stream, popxl.d2h_stream))

        def one():
            ops.host_store(ys, ops.host_load(xs) * 2.0)

        ops.repeat(ir.create_graph(one), 5)
    x = rng.normal(size=(5, replicas, 2, 3) if replicas > 1 else (5, 2, 3)).astype("float32")
    with make_session(ir) as session:
        np.testing.assert_array_equal(session.run({xs: x})[ys], 2 * x)


def test_sharded_weight(make_session: Any):
    ir = popxl.Ir(replication=2)
    initial = np.arange(6, dtype="float32").reshape(2, 3)
    with ir.main_graph, popxl.in_sequence():
        v, shard = popxl.replica_sharded_variable(initial)
        full = ops.collectives.replicated_all_gather(shard)
        half = ops.collectives.replica_sharded_slice(full * 0.5)
        ops.var_updates.accumulate_(shard, half)
    assert (v.shape, full.shape) == ((2, 3), (2, 3))
    assert (shard.shape, shard.meta_shape) == (half.shape, half.meta_shape) == ((3,), (2, 3))
    with make_session(ir) as session:
        session.run()
    np.testing.assert_array_equal(session.get_tensor_data(v), 1.5 * initial)


def _variable_in_a_sub_graph(ir: popxl.Ir) -> None:
    ir.create_graph(lambda: popxl.variable(1))


def _add_of_a_number(ir: popxl.Ir) -> None:
    ops.add(popxl.variable(1), 1)  # type: ignore[arg-type]


def _foreign_tensor(ir: popxl.Ir) -> None:
    ops.negate(ir.create_graph(lambda x: x, popxl.TensorSpec((), popxl.int32)).inputs[0])


def _promotion(ir: popxl.Ir) -> None:
    popxl.constant(1) + popxl.constant(1.0)


def _run_outside(ir: popxl.Ir) -> None:
    popxl.constant(1) + 1
    popxl.Session(ir).run()


def _run_without_inputs(ir: popxl.Ir) -> None:
    ops.host_load(popxl.h2d_stream((), popxl.int32))
    with popxl.Session(ir) as session:
        session.run({})


def _negative_repeat(ir: popxl.Ir) -> None:
    x = popxl.variable(1)
    ops.repeat(ir.create_graph(lambda a: a, x), -1, x)


def _call_without_inputs(ir: popxl.Ir) -> None:
    ops.call(ir.create_graph(lambda a: a, popxl.variable(1)))


def _bad_reshape(ir: popxl.Ir) -> None:
    ops.reshape(popxl.variable([1.0]), (0, -1))


def _concat_of_dtypes(ir: popxl.Ir) -> None:
    ops.concat([popxl.variable([1.0]), popxl.variable([1.0], popxl.float16)])


def _cast_to_float8(ir: popxl.Ir) -> None:
    ops.cast(popxl.variable([1.0]), popxl.float8_143)


def _iterate(ir: popxl.Ir) -> None:
    for _ in popxl.variable([1.0]):  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (_variable_in_a_sub_graph, ValueError),
        (_add_of_a_number, TypeError),
        (_foreign_tensor, ValueError),
        (_promotion, popart.popart_exception),
        (_run_outside, ValueError),
        (_run_without_inputs, ValueError),
        (_negative_repeat, ValueError),
        (_call_without_inputs, ValueError),
        (_bad_reshape, ValueError),
        (_concat_of_dtypes, TypeError),
        (_cast_to_float8, TypeError),
        (_iterate, TypeError),
        (lambda ir: popxl.Tensor(), RuntimeError),
        (lambda ir: popxl.Graph(), TypeError),
        (lambda ir: ir == 3, TypeError),
    ],
)
@pytest.mark.usefixtures("main")
def test_rejections(ir: popxl.Ir, program: Callable[[popxl.Ir], Any], error: type[Exception]):
    with pytest.raises(error):
        program(ir)
