"""Graphs serialised over micro-batches, against numpy and against runs without serialisation."""

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons import NamedTensors, RemoteHandle, batch_serial_buffer, batch_serialise
from popxl_addons.transforms.batch_serialisation import batch_serialise_fwd_and_grad

RTOL = 1e-5
MODES = ["compute", "io", "io_overlapped"]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def program(replicas: int = 1, transfers: int = 1) -> popxl.Ir:
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = transfers
    ir._pb_ir.getSessionOptions().numIOTiles = 32
    return ir


class Dense(addons.Module):
    """tanh(x w)."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = weight

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return ops.tanh(x @ self.add_variable_input("w", lambda: self.weight))


class Noisy(addons.Module):
    """dropout(x) * w."""

    def build(self, x: popxl.Tensor, seed: popxl.Tensor) -> popxl.Tensor:
        w = self.add_variable_input("w", lambda: np.full(x.shape[-1:], 2.0, np.float32))
        return ops.dropout(x * w, seed, p=0.5)


@pytest.mark.parametrize("io_mode", MODES)
def test_each_step_takes_and_gives_an_element_of_the_streams(io_mode: Any):
    weight, given = normal(0, 3, 3), normal(1, 4, 2, 3)
    ir = program(transfers=4)
    with ir.main_graph, popxl.in_sequence():
        into = popxl.h2d_stream((2, 3), popxl.float32)
        out = popxl.d2h_stream((2, 3), popxl.float32)
        factories, graph = Dense(weight).create_graph(into.spec)
        (x,), (y,) = graph.graph.inputs[:1], graph.graph.outputs
        result = batch_serialise(graph, 4, {x: into}, {y: out}, {}, io_mode=io_mode)
        assert result.graph.graph.outputs == ()
        assert [t.shape for t in result.graph.graph.inputs] == [(), (3, 3)]
        assert result.remap_tensors(graph.args).w is result.graph.args.w
        assert result.graph.bind(factories.init()).call(0) == ()
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({into: given})[out]
    np.testing.assert_allclose(found, np.tanh(given @ weight), rtol=RTOL)


@pytest.mark.parametrize("io_mode", MODES)
def test_rows_of_buffers(io_mode: Any):
    """Three layers, one after the other, each for all micro-batches: phased execution."""
    layers, steps, given = 3, 2, normal(2, 2, 2, 3)
    weights = [normal(10 + n, 3, 3) for n in range(layers)]
    ir = program()
    with ir.main_graph, popxl.in_sequence():
        _, graph = Dense(weights[0]).create_graph(popxl.TensorSpec((2, 3), popxl.float32))
        x, y = graph.graph.inputs[0], graph.graph.outputs[0]
        buffer = batch_serial_buffer(x, steps, rows=1)
        assert buffer.entries == steps
        result = batch_serialise(
            graph, steps, {x: (buffer, 0)}, {}, {y: (buffer, 1)}, rows=layers, io_mode=io_mode
        )
        assert buffer.entries == steps * (layers + 1)
        first = [
            popxl.remote_variable(given[step], buffer, step, name=f"x{step}")
            for step in range(steps)
        ]
        last = [
            popxl.remote_variable(given[step], buffer, layers * steps + step)
            for step in range(steps)
        ]
        for row, weight in enumerate(weights):
            variable = popxl.variable(weight)
            result.graph.bind(NamedTensors(w=variable)).call(row)
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    expected = given
    for weight in weights:
        expected = np.tanh(expected @ weight)
    for step in range(steps):
        np.testing.assert_allclose(
            session.get_tensor_data(last[step]), expected[step], rtol=RTOL, atol=1e-6
        )
        np.testing.assert_array_equal(session.get_tensor_data(first[step]), given[step])
    assert result.stored_buffers == {y: RemoteHandle(buffer, 1)}


def test_row_offsets_none_and_functions():
    steps, rows = 2, 3
    values = normal(3, rows * steps, 4)
    ir = program(transfers=rows * steps)
    with ir.main_graph, popxl.in_sequence():
        spec = popxl.TensorSpec((4,), popxl.float32)
        graph = addons.GraphWithNamedArgs(
            ir.create_graph(lambda a, b: (a + 0.0, b + 0.0), spec, spec)
        )
        a, b = graph.graph.inputs
        buffer = batch_serial_buffer(spec, steps, rows)
        out = [popxl.d2h_stream((4,), popxl.float32) for _ in range(2)]
        loads = {a: (buffer, None), b: RemoteHandle(buffer, lambda n: (n + 5) / 3)}
        result = batch_serialise(
            graph, steps, loads, dict(zip(graph.graph.outputs, out, strict=True)), {}, rows=rows
        )
        assert loads[a] == RemoteHandle(buffer, None)
        assert buffer.entries == rows * steps
        for entry, value in enumerate(values):
            popxl.remote_variable(value, buffer, entry)
        for row in range(rows):
            result.graph.call(row)
    with popxl.Session(ir, "ipu_hw") as session:
        first, mapped = (session.run()[stream] for stream in out)
    np.testing.assert_array_equal(first, np.tile(values[:steps], (rows, 1)))
    at = [((row + 5) // 3) * steps + step for row in range(rows) for step in range(steps)]
    np.testing.assert_array_equal(mapped, values[at])


def test_by_reference_inputs_accumulate_over_steps_and_inputs_can_be_stored():
    given = normal(4, 3, 2)
    ir = program(transfers=3)
    with ir.main_graph, popxl.in_sequence():

        def add(x: popxl.Tensor, total: popxl.TensorByRef) -> None:
            ops.add_(total, x)

        total = popxl.variable(np.zeros(2, np.float32))
        into = popxl.h2d_stream((2,), popxl.float32)
        out = popxl.d2h_stream((2,), popxl.float32)
        graph = addons.GraphWithNamedArgs(ir.create_graph(add, into.spec, total))
        x, inner = graph.graph.inputs
        buffer = batch_serial_buffer(x, 3)
        result = batch_serialise(
            graph, 3, {x: into}, {x: out}, {x: (buffer, 0), inner: (buffer, 1)}
        )
        result.graph.call(0, total)
        kept = [popxl.remote_variable(np.zeros(2, np.float32), buffer, n) for n in range(6)]
    with popxl.Session(ir, "ipu_hw") as session:
        np.testing.assert_array_equal(session.run({into: given})[out], given)
    sums = np.cumsum(given, axis=0)
    np.testing.assert_allclose(session.get_tensor_data(total), sums[-1], rtol=RTOL)
    found = np.stack([session.get_tensor_data(t) for t in kept])
    np.testing.assert_array_equal(found[:3], given)


def test_what_is_loaded_from_a_buffer_is_not_stored_again():
    ir = program()
    with ir.main_graph:
        spec = popxl.TensorSpec((2,), popxl.float32)
        graph = addons.GraphWithNamedArgs(ir.create_graph(lambda x: x + 1.0, spec))
        (x,) = graph.graph.inputs
        here, there = batch_serial_buffer(x), batch_serial_buffer(x)
        result = batch_serialise(graph, 2, {x: (here, 0)}, {}, {x: (there, 0)})
        assert result.stored_buffers == {x: RemoteHandle(here, 0)}
        kinds = [
            op.opType()
            for op in result.graph.graph.called_graphs[0].called_graphs[0]._pb_graph.getOps()
        ]
        assert "RemoteStore" not in kinds


def torch_layer(x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """tanh(x w), and the gradients by x and w, in float64."""
    t = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w)]
    y = torch.tanh(t[0] @ t[1])
    upstream = torch.tensor(dy, dtype=torch.float64).expand_as(y)
    return y.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(y, t, upstream))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_forward_and_gradient_equal_torch(recompute: bool, sharded: bool):
    """Losses and accumulated gradients of micro-batches; if sharded, each of 2 replicas, which
    then have the same input, keeps half of it."""
    steps, replicas = 3, 2
    weight, given, upstream = normal(5, 4, 4), normal(6, steps, replicas, 2, 4), normal(7, 2, 4)
    if sharded:
        given[:, 1] = given[:, 0]
    ir = program(replicas, transfers=steps)
    with ir.main_graph, popxl.in_sequence():
        into, out = popxl.h2d_stream((2, 4), popxl.float32), popxl.d2h_stream((2, 4), popxl.float32)
        factories, graph = Dense(weight).create_graph(into.spec)
        x, (y,) = graph.graph.inputs[0], graph.graph.outputs
        accumulators, grad = addons.autodiff_with_accumulation(graph, [graph.args.w], [y], [x])
        if recompute:
            grad = addons.recompute_graph(grad)
        dy, dx = grad.graph.inputs[0], grad.graph.outputs[0]
        dy_buffer, dx_buffer = batch_serial_buffer(dy, steps), batch_serial_buffer(dx, steps)
        stores: dict[popxl.Tensor, Any] = {dx: (dx_buffer, 0)}
        if sharded:
            stores[x] = ir.replica_grouping()
        before = dict(stores)
        forward, backward = batch_serialise_fwd_and_grad(
            graph, grad, graph.args, steps, {x: into, dy: (dy_buffer, 0)}, {y: out}, stores
        )
        assert set(stores) == set(before)
        assert forward.stored_buffers[x].buffer.meta_shape == ((2, 4) if sharded else ())
        assert backward.graph.grad_graph_info.forward_graph == graph.graph
        variables, state = factories.init(), accumulators.init()
        for step in range(steps):
            popxl.remote_variable(upstream, dy_buffer, step)
        everyone = ir.replica_grouping(group_size=1)
        dx_kept = [
            popxl.remote_variable(
                np.zeros((2, 2, 4), "f4"), dx_buffer, n, replica_grouping=everyone
            )
            for n in range(steps)
        ]
        forward.graph.bind(variables).call(0)
        named = NamedTensors.from_dict({**variables.to_dict(), **state.to_dict()})
        backward.graph.bind(named).call(0)
        ops.var_updates.copy_var_update_(
            state.accum.w, ops.collectives.replicated_all_reduce(state.accum.w, "mean")
        )
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run({into: given})
    y_wanted, dx_wanted, dw_wanted = torch_layer(given, weight, upstream)
    np.testing.assert_allclose(results[out], y_wanted, rtol=RTOL, atol=1e-6)
    found = session.get_tensor_data(state.accum.w)
    np.testing.assert_allclose(found, dw_wanted / steps / replicas, rtol=1e-4, atol=1e-6)
    found = np.stack([session.get_tensor_data(v) for v in dx_kept])
    np.testing.assert_allclose(found, dx_wanted, rtol=1e-4, atol=1e-6)


def test_a_seed_input_differs_from_step_to_step_and_the_gradient_sees_the_same():
    """Dropout of ones: the gradient is non-zero where the output is."""
    steps = 3
    ir = program(transfers=steps)
    with ir.main_graph, popxl.in_sequence():
        into, out = (
            stream((64,), popxl.float32) for stream in (popxl.h2d_stream, popxl.d2h_stream)
        )
        grad_out = popxl.d2h_stream((64,), popxl.float32)
        seed_spec = popxl.TensorSpec((2,), popxl.uint32)
        factories, graph = Noisy().create_graph(into.spec, seed_spec)
        x, seed, *_ = graph.graph.inputs
        y = graph.graph.outputs[0]
        grad = addons.autodiff(graph, [y], [x])
        dy, dx = grad.graph.inputs[0], grad.graph.outputs[0]
        buffer = batch_serial_buffer(dy, steps)
        forward, backward = batch_serialise_fwd_and_grad(
            graph,
            grad,
            graph.args,
            steps,
            {x: into, dy: (buffer, 0)},
            {y: out, dx: grad_out},
            {},
            seed_input=seed,
        )
        assert [t.shape for t in forward.graph.graph.inputs] == [(), (2,), (64,)]
        for step in range(steps):
            popxl.remote_variable(np.ones(64, np.float32), buffer, step)
        variables = factories.init()
        forward.graph.bind(variables).call(0, popxl.constant(np.array([3, 4], np.uint32)))
        backward.graph.bind(variables).call(0)
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run({into: np.ones((steps, 64), np.float32)})
    masks = results[out] != 0
    np.testing.assert_array_equal(results[out], masks * 4.0)
    np.testing.assert_array_equal(results[grad_out], masks * 4.0)
    assert 16 < masks[0].sum() < 48
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()


class TestRefuses:
    @pytest.fixture
    def graph(self, ir: popxl.Ir) -> addons.GraphWithNamedArgs:
        ir._pb_ir.getSessionOptions().numIOTiles = 32
        return Dense(normal(0, 2, 2)).create_graph(popxl.TensorSpec((2, 2), popxl.float32))[1]

    def test_io_modes_without_io_tiles(self, graph: addons.GraphWithNamedArgs):
        popxl.gcg().ir._pb_ir.getSessionOptions().numIOTiles = 0
        for io_mode in ("io", "io_overlapped"):
            with pytest.raises(ValueError, match="numIOTiles"):
                batch_serialise(graph, 2, {}, {}, {}, io_mode=io_mode)  # type: ignore[arg-type]
        batch_serialise(graph, 2, {}, {}, {}, io_mode="compute")

    def test_other_modes(self, graph: addons.GraphWithNamedArgs):
        with pytest.raises(ValueError, match="io_mode"):
            batch_serialise(graph, 2, {}, {}, {}, io_mode="fast")  # type: ignore[arg-type]

    def test_no_rows(self, graph: addons.GraphWithNamedArgs):
        with pytest.raises(ValueError, match="rows"):
            batch_serialise(graph, 2, {}, {}, {}, rows=0)

    def test_named_inputs_that_are_loaded(self, graph: addons.GraphWithNamedArgs):
        buffer = batch_serial_buffer(graph.args.w, 2)
        with pytest.raises(KeyError):
            batch_serialise(graph, 2, {graph.args.w: (buffer, 0)}, {}, {})

    def test_intermediate_tensors(self, graph: addons.GraphWithNamedArgs):
        inner = graph.graph.get_tensor(f"{graph.graph.id}/matmul_out")
        with pytest.raises(ValueError, match="neither an input nor an output"):
            batch_serialise(graph, 2, {}, {}, {inner: (batch_serial_buffer(inner, 2), 0)})

    def test_upstream_gradients_without_a_handle(self, graph: addons.GraphWithNamedArgs):
        grad = addons.autodiff(graph)
        with pytest.raises(ValueError, match="no entry for"):
            batch_serialise_fwd_and_grad(graph, grad, graph.args, 2, {}, {}, {})

    def test_overlap_of_one_step(
        self, graph: addons.GraphWithNamedArgs, caplog: pytest.LogCaptureFixture
    ):
        batch_serialise(graph, 1, {}, {}, {}, io_mode="io_overlapped")
        assert "io_mode is 'io'" in caplog.text

    def test_handles_of_other_graphs_are_ignored(self, graph: addons.GraphWithNamedArgs):
        _, other = Dense(normal(0, 2, 2)).create_graph(popxl.TensorSpec((2, 2), popxl.float32))
        x = other.graph.inputs[0]
        buffer = batch_serial_buffer(x, 2)
        result = batch_serialise(graph, 2, {x: (buffer, 0)}, {}, {x: (buffer, 0)})
        assert result.stored_buffers == {}
        assert len(result.graph.graph.inputs) == 3
