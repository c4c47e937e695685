"""Pipelines, against the same stages run one after the other for each micro-batch."""

from collections.abc import Iterator

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.transforms.pipelining import (
    Pipelining,
    StageContext,
    Stash,
    get_op_pipeline_stage,
    pipelined_execution,
)

from runtime.tests.popxl_addons.transforms.random_stages import Stages

RTOL = 1e-4
ATOL = 1e-6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def ordered() -> Iterator[None]:
    with popxl.in_sequence():
        yield


class Layer(addons.Module):
    """tanh(x w)."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = weight

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return ops.tanh(x @ self.add_variable_input("w", lambda: self.weight))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_chain_of_layers(stages: int):
    steps = 2 * stages + 1
    weights, given = [normal(s, 3, 3) for s in range(stages)], normal(9, steps, 2, 3)
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    tensors: list[popxl.Tensor] = []
    with ir.main_graph:
        into, out = (
            stream((2, 3), popxl.float32) for stream in (popxl.h2d_stream, popxl.d2h_stream)
        )
        variables = [popxl.variable(w) for w in weights]
        with pipelined_execution(steps) as pipeline:
            for stage, w in enumerate(variables):
                with pipeline.stage(stage), popxl.ipu(stage):
                    x = tensors[-1].copy_to_ipu(stage, stage - 1) if stage else ops.host_load(into)
                    tensors.append(ops.tanh(x @ w))
            with pipeline.stage(stages - 1), popxl.ipu(stages - 1):
                ops.host_store(out, tensors[-1])
    expected = given
    for w in weights:
        expected = np.tanh(expected @ w)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(2):
            found = session.run({into: given})[out]
            np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)


def test_a_stash_hands_values_to_later_stages_in_every_run():
    """x is made in stage 0 and used in stages 2 and 3; a scalar comes back as (1,)."""
    steps = 9
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    with ir.main_graph:
        into, out = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
        with pipelined_execution(steps) as pipeline:
            with pipeline.stage(0):
                x = ops.host_load(into)
                total = ops.sum(x)
            with pipeline.stage(1):
                y = x * 2.0
            with pipeline.stage(2):
                z = y + pipeline.stash_and_restore_tensor(x)
            with pipeline.stage(3):
                restored = pipeline.stash_and_restore_tensor(x, from_stage=0)
                scalar = pipeline.stash_and_restore_tensor(total)
                assert (restored.shape, scalar.shape) == ((2,), (1,))
                ops.host_store(out, z * restored + scalar)
    given = normal(1, steps, 2)
    expected = 3 * given * given + given.sum(-1, keepdims=True)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(3):
            np.testing.assert_allclose(
                session.run({into: given})[out], expected, rtol=RTOL, atol=ATOL
            )


def gradients_of_the_sum(given: np.ndarray, weights: list[np.ndarray]) -> list[np.ndarray]:
    """By two layers' weights, in float64."""
    t = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in weights]
    y = torch.tanh(torch.tanh(torch.tensor(given, dtype=torch.float64) @ t[0]) @ t[1])
    return [gradient.numpy() for gradient in torch.autograd.grad(y.sum(), t)]


@pytest.mark.parametrize("replicas", [1, 2])
def test_training_accumulates_what_torch_does(replicas: int):
    """Two layers forward, then backward, as four stages; activations are stashed."""
    steps = 8
    weights, given = [normal(s, 3, 3) for s in (2, 3)], normal(4, steps, replicas, 2, 3)
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = steps
    made, accums = [], []
    with ir.main_graph:
        into = popxl.h2d_stream((2, 3), popxl.float32)
        for weight in weights:
            factories, graph = Layer(weight).create_graph(into.spec)
            inputs = [graph.graph.inputs[0]]
            accumulators, grad = addons.autodiff_with_accumulation(
                graph, graph.args.tensors, graph.graph.outputs, inputs
            )
            accums.append(accumulators.init())
            made.append((graph.bind(factories.init()), grad.bind(accums[-1]), grad.grad_graph_info))
        infos = []
        with pipelined_execution(steps) as pipeline:
            with pipeline.stage(0), popxl.ipu(0):
                x = ops.host_load(into)
            for stage, (forward, _, _) in enumerate(made):
                with pipeline.stage(stage), popxl.ipu(stage):
                    infos.append(forward.call_with_info(x))
                    x = infos[-1].outputs[0].copy_to_ipu(stage + 1, stage)
            dx = None
            for stage, at in ((2, 1), (3, 0)):
                _, grad, info = made[at]
                with pipeline.stage(stage), popxl.ipu(at):
                    y = infos[at].outputs[0]
                    dy = ops.init(y.shape, y.dtype) + 1.0 if dx is None else dx
                    kept = pipeline.stash_and_restore_activations(infos[at], info)
                    (dx,) = grad.call(dy, args=kept)
                    dx = dx.copy_to_ipu(0, at)
        for accum in accums:
            mean = ops.collectives.replicated_all_reduce(accum.accum.w, "mean")
            ops.var_updates.copy_var_update_(accum.accum.w, mean)
    with popxl.Session(ir, "ipu_hw") as session:
        session.run({into: given if replicas > 1 else given[:, 0]})
    for accum, wanted in zip(accums, gradients_of_the_sum(given, weights), strict=True):
        found = session.get_tensor_data(accum.accum.w)
        np.testing.assert_allclose(found, wanted / steps / replicas, rtol=RTOL, atol=ATOL)


def test_stages_take_turns_within_a_cycle():
    """A variable that stage 0 reads and stage 1 writes: micro-batch m sees the sum of the first
    m - 1, since in cycle m stage 0 runs before stage 1, which works on micro-batch m - 1."""
    steps = 6
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    with ir.main_graph:
        into, out = popxl.h2d_stream((), popxl.float32), popxl.d2h_stream((), popxl.float32)
        total = popxl.variable(0.0)
        with pipelined_execution(steps) as pipeline:
            with pipeline.stage(0):
                x = ops.host_load(into)
                ops.host_store(out, total + 0.0)
            with pipeline.stage(1):
                ops.add_(total, x)
    given = np.arange(1, steps + 1, dtype=np.float32)
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({into: given})[out]
    np.testing.assert_array_equal(found, [0, 0, *np.cumsum(given)[: steps - 2]])
    assert session.get_tensor_data(total) == given.sum()


def test_ops_by_ipu_are_the_default_stages(ir: popxl.Ir):
    with popxl.ipu(0):
        x = popxl.variable(1.0) + 1.0
    with popxl.ipu(1):
        total = popxl.variable(0.0)
        ops.add_(total, x.copy_to_ipu(1))
    Pipelining(ir.main_graph, 5).apply()
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    assert session.get_tensor_data(total) == 10


def test_what_comes_after_a_pipeline_is_ordered_after_it(ir: popxl.Ir):
    with popxl.in_sequence():
        state = popxl.variable(0.0)
        ops.add_(state, popxl.constant(5.0))
        with addons.pipelined_execution(3) as pipeline, pipeline.stage(0):
            ops.add_(state, popxl.constant(1.0))
        ops.var_updates.copy_var_update_(state, state * 2.0)
    with popxl.Session(ir, "ipu_hw") as session:
        session.run()
    assert session.get_tensor_data(state) == 16


@pytest.mark.parametrize("form", ["pipeline", "repeat"])
@pytest.mark.parametrize("seed", range(6))
def test_random_stages_give_what_they_give_one_after_the_other(form: str, seed: int):
    for found, wanted in zip(Stages(seed).run(form), Stages(seed).run("plain"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=ATOL)


class TestRefuses:
    def test_ops_outside_of_stages(self, ir: popxl.Ir):
        with pytest.raises(RuntimeError, match="outside"), pipelined_execution(4):
            ops.init((2,), popxl.float32)

    @staticmethod
    def run(steps: int, *stages: int) -> None:
        with pipelined_execution(steps) as pipeline:
            for stage in stages:
                with pipeline.stage(stage):
                    ops.init((2,), popxl.float32)

    def test_too_few_steps(self, ir: popxl.Ir):
        with pytest.raises(ValueError, match="at least 4 steps"):
            self.run(3, 0, 1)

    def test_gaps_between_stages(self, ir: popxl.Ir):
        with pytest.raises(ValueError, match="0, 1"):
            self.run(9, 0, 2)

    def test_a_stash_within_a_stage(self, ir: popxl.Ir):
        pipeline = StageContext()
        handle = ir.main_graph.register_op_created_hook(pipeline.hook)
        with pipeline.stage(0):
            x = ops.init((2,), popxl.float32)
            with pytest.raises(TypeError):
                pipeline.stash_and_restore_tensor(x)
        ir.main_graph.remove_op_created_hook(handle)

    def test_a_stash_without_a_stage_or_a_producer(self, ir: popxl.Ir):
        pipeline = StageContext()
        v = popxl.variable(1.0)
        with pytest.raises(RuntimeError, match="no stage"):
            pipeline.stash_and_restore_tensor(v)
        with pipeline.stage(1), pytest.raises(RuntimeError, match="no op"):
            pipeline.stash_and_restore_tensor(v)
        with pipeline.stage(1), pytest.raises(RuntimeError, match="no stage"):
            pipeline.stash_and_restore_tensor(v + 1.0)

    def test_after_an_error_ops_are_free_again(self, ir: popxl.Ir):
        with pytest.raises(KeyError), pipelined_execution(4):
            raise KeyError
        ops.init((2,), popxl.float32)

    def test_ops_of_no_stage(self, ir: popxl.Ir):
        ops.init((2,), popxl.float32)
        (op,) = ir.main_graph._pb_graph.getOps()
        assert get_op_pipeline_stage(op, {3: [op]}) == 3
        with pytest.raises(RuntimeError):
            get_op_pipeline_stage(op, {})


def test_a_stash_needs_two_slots(ir: popxl.Ir):
    with pytest.raises(TypeError):
        Stash().create_graph(popxl.TensorSpec((2,), popxl.float32), 1)
