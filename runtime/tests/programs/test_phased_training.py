"""Training in phases: state sharded over replicas in remote memory, one layer at a time."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.layers import Linear
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.optimizers.adam import AdamOptimizerStep
from popxl_addons.remote import create_remote_buffer, named_variable_buffers, store_remote_graph
from popxl_addons.rts import (
    all_gather_replica_sharded_graph,
    reduce_replica_sharded_graph,
)
from popxl_addons.transforms.pipelining import pipelined_execution
from popxl_addons.variable_factory import NamedVariableFactories

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
LAYERS, STEPS, REPLICAS, ROWS, WIDTH = 3, 2, 8, 2, 8
SCALE, LR, SEED = 32.0, 0.01, 7


class Layer(addons.Module):
    """x + dropout(tanh(x w + b)), in float16 or float32."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.linear = p, Linear(WIDTH)

    def build(self, x: popxl.Tensor, seed: popxl.Tensor) -> popxl.Tensor:
        y = ops.tanh(self.linear(x))
        return x + (ops.dropout(y, seed, p=self.p) if self.p else y)


class Phases:
    """Layers forward, then backward with accumulation over micro-batches, then Adam on shards.

    Weights lie in rows of remote buffers, cut over all replicas; so do the optimiser's states.
    """

    def __init__(self, dtype: popxl.dtype, p: float) -> None:
        spec = popxl.TensorSpec((ROWS, WIDTH), dtype)
        seed_spec = popxl.TensorSpec((2,), popxl.uint32)
        facts, graph = Layer(p).create_graph(spec, seed_spec)
        self.groups = facts.replica_groupings
        x, seed = graph.graph.inputs[:2]
        self.accums, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, grads_required=[x], replica_groupings=self.groups
        )
        grad = addons.recompute_graph(grad)
        dx = grad.graph.inputs[0]
        self.acts = addons.batch_serial_buffer(spec, STEPS, LAYERS + 1)
        self.grads = addons.batch_serial_buffer(spec, STEPS, LAYERS + 1)
        handle = addons.RemoteHandle
        self.forward, self.backward = addons.batch_serialise_fwd_and_grad(
            graph, grad, graph.args, STEPS,
            load_handles={x: handle(self.acts, 0), dx: handle(self.grads, 1)},
            store_streams={},
            store_buffers={
                graph.graph.outputs[0]: handle(self.acts, 1),
                grad.graph.outputs[0]: handle(self.grads, 0),
            },
            seed_input=seed, rows=LAYERS, io_mode="compute",
        )  # fmt: skip
        self.buffers = named_variable_buffers(facts, LAYERS)
        self.state = [facts.init_remote(self.buffers, i, str(i)) for i in range(LAYERS)]
        self.optimise(facts)

    def optimise(self, facts: NamedVariableFactories) -> None:
        """A step for each parameter, over its shard; the states are remote."""
        self.steps, made = {}, NamedVariableFactories()
        for name, factory in facts.to_dict().items():
            group = self.groups.get(name)
            cut = popxl.TensorSpec(
                (math.prod(factory.shape) // REPLICAS,), factory.dtype, factory.shape
            )
            states, step = AdamOptimizerStep().create_graph(
                cut, cut, group, lr=LR, loss_scaling=SCALE, weight_decay=0.1,
                first_order_dtype=popxl.float32, bias_correction=True,
            )  # fmt: skip
            made.insert(name.replace(".", "_"), states)
            self.steps[name] = step
        whole = {k: 1 for k in made.keys_flat() if k.endswith("step")}
        self.adam_buffers = named_variable_buffers(made, LAYERS, whole)
        self.adam = [made.init_remote(self.adam_buffers, i, f"adam.{i}") for i in range(LAYERS)]

    def weights(self, row: int) -> tuple[addons.NamedTensors, addons.NamedTensors]:
        load, names = addons.load_remote_graph(self.buffers, LAYERS)
        shards = addons.NamedTensors.pack(names, load.call(row))
        gather, names = all_gather_replica_sharded_graph(shards, replica_groups=self.groups)
        return shards, addons.NamedTensors.pack(names, gather.bind(shards).call())

    def run(self, seed: popxl.Tensor) -> None:
        seeds = []
        for row in range(LAYERS):
            here, seed = ops.split_random_seed(seed)
            seeds.append(here)
            self.forward.graph.bind(self.weights(row)[1]).call(row, here)
        for row in reversed(range(LAYERS)):
            shards, whole = self.weights(row)
            accums = self.accums.init_zero()
            given = addons.NamedTensors.from_dict({**whole.to_dict(), **accums.to_dict()})
            self.backward.graph.bind(given).call(row)
            accums.pop("mean_accum_counter")
            reduce, names = reduce_replica_sharded_graph(
                accums, "mean", shard_groups=NamedReplicaGrouping(accum=self.groups)
            )
            grads = addons.NamedTensors.pack(names, reduce.bind(accums).call()).accum
            load, names = addons.load_remote_graph(self.adam_buffers, LAYERS)
            states = addons.NamedTensors.pack(names, load.call(row))
            for name, step in self.steps.items():
                step.bind(states.get(name.replace(".", "_"))).call(
                    shards.get(name), grads.get(name)
                )
            store_remote_graph(self.buffers, LAYERS).bind(shards).call(row)
            store_remote_graph(self.adam_buffers, LAYERS).bind(states).call(row)


def program(dtype: popxl.dtype, p: float) -> tuple[addons.TaskSession, Phases]:
    """Reads x, STEPS micro-batches; the gradient of the last layer's output is SCALE."""
    ir = popxl.Ir(replication=REPLICAS)
    ir.num_host_transfers = STEPS
    shape = (ROWS, WIDTH)
    with ir.main_graph, popxl.in_sequence():
        inputs = addons.InputStreams(x=(shape, dtype))
        outputs = addons.OutputStreams(y=(shape, dtype))
        variable, seed = addons.seed_variable(SEED)
        phases = Phases(dtype, p)

        def read(i: popxl.Tensor) -> popxl.Tensor:
            ops.remote_store(phases.acts, i, ops.host_load(inputs.x))
            ones = popxl.constant(np.full(shape, SCALE), dtype)
            ops.remote_store(phases.grads, i + LAYERS * STEPS, ones)
            return i + 1

        def write(i: popxl.Tensor) -> popxl.Tensor:
            ops.host_store(outputs.y, ops.remote_load(phases.acts, i))
            return i + 1

        ops.repeat(ir.create_graph(read, popxl.constant(0)), STEPS, 0)
        phases.run(seed)
        ops.repeat(ir.create_graph(write, popxl.constant(0)), STEPS, LAYERS * STEPS)
        seed += 1
    trees = {"layer": phases.state, "adam": phases.adam}
    state = addons.NamedTensors.from_dict(
        {"seed": variable}
        | {f"{name}.{i}": tree for name, ts in trees.items() for i, tree in enumerate(ts)}
    )
    return addons.TaskSession(inputs, outputs, state, 2, ir, "ipu_hw"), phases


def draw(rng: np.random.Generator, session: addons.TaskSession, dtype: popxl.dtype) -> dict:
    named = {k: t for k, t in session.state.to_dict().items() if k.startswith("layer")}
    return {
        name: (rng.normal(size=t.shape) * 0.5).astype(dtype.as_numpy()) for name, t in named.items()
    }


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_adam_in_phases(name: str, rng: np.random.Generator) -> None:
    """As AdamW on the whole; float16 weights have float32 states."""
    dtype = getattr(popxl, name)
    session, _ = program(dtype, 0.0)
    arrays = draw(rng, session, dtype)
    named = session.state.to_dict()
    session.write_variables_data({named[k]: a for k, a in arrays.items()})
    params = {k: torch.tensor(a.astype("f8"), requires_grad=True) for k, a in arrays.items()}
    adam = torch.optim.AdamW(params.values(), lr=LR, eps=1e-5, weight_decay=0.1)
    loose = {"rtol": 2e-2, "atol": 5e-3} if name == "float16" else TOLERANCE
    for _ in range(2):
        data = rng.normal(size=(STEPS, REPLICAS, ROWS, WIDTH)).astype(dtype.as_numpy())
        with session:
            found = session.run({session.inputs.x: data})[session.outputs.y]
        y = torch.tensor(data.astype("f8"))
        for i in range(LAYERS):
            w, b = (params[f"layer.{i}.linear.{k}"] for k in ("weight", "bias"))
            y = y + torch.tanh(y @ w + b)
        np.testing.assert_allclose(found, y.detach().numpy(), **loose)
        adam.zero_grad()
        (y.sum() / STEPS / REPLICAS).backward()
        adam.step()
    read = session.get_named_tensors_data().to_dict()
    for key, p in params.items():
        np.testing.assert_allclose(read[key], p.detach().numpy(), err_msg=key, **loose)
        adam_key = key.replace("layer", "adam").replace("linear.", "linear_")
        first = read[f"{adam_key}.first_order"]
        assert first.dtype == np.float32
        want = adam.state[p]["exp_avg"].numpy()
        np.testing.assert_allclose(first, want, err_msg=key, **loose)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path, rng: np.random.Generator) -> None:
    """Dropout too: the seeds are state. The second of two sessions continues bit for bit."""
    data = rng.normal(size=(3, STEPS, REPLICAS, ROWS, WIDTH)).astype("f4")
    first, _ = program(popxl.float32, 0.4)
    named = first.state.to_dict()
    first.write_variables_data({named[k]: a for k, a in draw(rng, first, popxl.float32).items()})
    with first:
        first.run({first.inputs.x: data[0]})
        first.save_checkpoint(str(tmp_path / "one"))
        want = [first.run({first.inputs.x: x})[first.outputs.y] for x in data[1:]]
    second, _ = program(popxl.float32, 0.4)
    second.load_checkpoint(str(tmp_path / "one"), report_missing="error")
    assert second.session_state == {"steps": 1}
    with second:
        found = [second.run({second.inputs.x: x})[second.outputs.y] for x in data[1:]]
    np.testing.assert_array_equal(found, want)
    ends = [s.get_named_tensors_data().to_dict() for s in (first, second)]
    for key, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][key], err_msg=key)
    third, _ = program(popxl.float32, 0.4)
    third.load_from_session(first)
    third.write_variables_data({third.state.seed: ends[0]["seed"] + np.uint32(1)})
    with third:
        x = np.broadcast_to(data[0][:1, :1], data[0].shape).copy()
        y = third.run({third.inputs.x: x})[third.outputs.y].reshape(STEPS * REPLICAS, -1)
    assert len(np.unique(y, axis=0)) == STEPS * REPLICAS  # no two micro-batches drop the same


def test_accumulators_in_remote_memory(rng: np.random.Generator) -> None:
    """Two layers take turns with one gradient graph; their accumulators wait in remote memory."""
    ir = popxl.Ir(replication=2)
    ir.num_host_transfers = 4
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((ROWS, WIDTH), popxl.float32)
        facts, graph = Linear(WIDTH, bias=False).create_graph(stream.spec)
        accums, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, replica_groupings=facts.replica_groupings
        )
        weights = [facts.init(f"w{i}") for i in range(2)]
        counters = [accums.init("counter") for _ in range(2)]
        spec = popxl.TensorSpec((WIDTH, WIDTH), popxl.float32)
        buffer = create_remote_buffer(spec, entries=2, shard_over=1)
        zeros = np.zeros(spec.shape, "f4")
        kept = [popxl.remote_variable(zeros, buffer, i) for i in range(2)]
        for step in range(4):
            i = step % 2
            x = ops.host_load(stream)
            accum = ops.remote_load(buffer, i)
            state = addons.NamedTensors.from_dict(
                {
                    "mean_accum_counter": counters[i].mean_accum_counter,
                    "accum.weight": accum,
                }
            )
            info = graph.bind(weights[i]).call_with_info(x)
            grad.bind(state).call(x * 2.0, args=grad.grad_graph_info.inputs_dict(info))
            ops.remote_store(buffer, i, accum)
        for i in range(2):
            mean = ops.collectives.replicated_all_reduce(ops.remote_load(buffer, i), "mean")
            ops.remote_store(buffer, i, mean)
    data = rng.normal(size=(4, 2, ROWS, WIDTH)).astype("f4")
    session = popxl.Session(ir, "ipu_hw")
    with session:
        session.run({stream: data})
    for i, variable in enumerate(kept):
        want = np.einsum("srti,srtj->ij", data[i::2], 2 * data[i::2]) / 4
        np.testing.assert_allclose(session.get_tensor_data(variable), want, **TOLERANCE)


def test_stages_that_detach(rng: np.random.Generator) -> None:
    """Each stage trains its own layer on what comes in, through which no gradient goes back."""
    steps, stages = 5, 2
    ir = popxl.Ir()
    ir.num_host_transfers = steps

    class Local(addons.Module):
        def build(self, x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            w = self.add_variable_input("w", partial(np.zeros, (WIDTH, WIDTH)), x.dtype)
            y = ops.tanh(x @ w)
            return y, ops.sum((y - x.detach()) * (y - x.detach()))

    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((ROWS, WIDTH), popxl.float32)
        facts, graph = Local().create_graph(stream.spec)
        accums, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, [graph.graph.outputs[1]], [graph.graph.inputs[0]]
        )
        state = [facts.init(f"s{i}") for i in range(stages)]
        sums = [accums.init(f"a{i}") for i in range(stages)]
        out = popxl.d2h_stream((ROWS, WIDTH), popxl.float32)
        with pipelined_execution(steps) as pipeline:
            made: list[popxl.Tensor] = []
            for i in range(stages):
                with pipeline.stage(i), popxl.ipu(i):
                    x = made[-1].copy_to_ipu(i, i - 1) if i else ops.host_load(stream)
                    info = graph.bind(state[i]).call_with_info(x)
                    links = pipeline.stash_and_restore_activations(info, grad.grad_graph_info)
                    (dx,) = grad.bind(sums[i]).call(1.0, args=links)
                    made.append(info.outputs[0])
                    if i == stages - 1:
                        ops.host_store(out, dx)
    data = rng.normal(size=(steps, ROWS, WIDTH)).astype("f4")
    arrays = [rng.normal(size=(WIDTH, WIDTH)).astype("f4") * 0.3 for _ in range(stages)]
    session = popxl.Session(ir, "ipu_hw")
    with session:
        session.write_variables_data({s.w: a for s, a in zip(state, arrays, strict=True)})
        found = session.run({stream: data})[out]
    x = torch.tensor(data.astype("f8"))
    for s, a in zip(sums, arrays, strict=True):
        x = x.detach().requires_grad_()
        w = torch.tensor(a.astype("f8"), requires_grad=True)
        y = torch.tanh(x @ w)
        (y - x.detach()).square().sum().backward()
        got = session.get_tensor_data(s.accum.w)
        np.testing.assert_allclose(got, w.grad.numpy() / steps, **TOLERANCE)
        dx, x = x.grad, y
    np.testing.assert_allclose(found, dx.numpy(), **TOLERANCE)


def test_steps_with_infinite_gradients_are_skipped() -> None:
    """The scale of the loss halves instead, on all replicas, if any of them overflows."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((4,), popxl.float16)
        weight = popxl.variable(np.ones(4, "f2"))
        scale = popxl.variable(np.float32(1024))
        grad = ops.cast(ops.host_load(stream), popxl.float32)
        grad = ops.collectives.replicated_all_reduce(grad, "mean")
        finite = ops.logical_not(ops.isinf(ops.sum(grad * grad)))

        def update(w: popxl.Tensor, g: popxl.Tensor, s: popxl.Tensor):
            return w - ops.cast(g / s, popxl.float16), s + 0.0

        def skip(w: popxl.Tensor, s: popxl.Tensor):
            return w + 0.0, s * 0.5

        branches = (
            ir.create_graph(update, weight, grad, scale),
            ir.create_graph(skip, weight, scale),
        )
        chosen = ops.conditional(finite, *branches, [weight, grad, scale], [weight, scale])
        for variable, value in zip((weight, scale), chosen, strict=True):
            ops.var_updates.copy_var_update_(variable, value)
    session = popxl.Session(ir, "ipu_hw")
    with session:
        for size in (1024, np.inf, 512):
            session.run({stream: np.stack([np.zeros(4, "f2"), np.full(4, 2 * size, "f2")])})
    np.testing.assert_array_equal(session.get_tensor_data(weight), np.full(4, -1))
    assert session.get_tensor_data(scale) == 512
