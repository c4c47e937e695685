"""AdamOptimizerStep against torch.optim.AdamW."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl_addons.optimizers import AdamOptimizerStep

RTOL = 1e-4  # of float32, in which 1 - beta2 ** step loses three digits
STEPS = 4


def adam_w(
    start: np.ndarray, grads: list[np.ndarray], weight_decay: float, eps: float
) -> np.ndarray:
    weight = torch.tensor(start)
    optimizer = torch.optim.AdamW([weight], lr=0.1, eps=eps, weight_decay=weight_decay)
    for grad in grads:
        weight.grad = torch.tensor(grad)
        optimizer.step()
    return weight.numpy()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_steps(ir: popxl.Ir, run: Callable, weight_decay: float, as_tensors: bool):
    rng = np.random.default_rng(5)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    grads = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(STEPS)]
    with popxl.in_sequence():
        var = popxl.variable(start)
        lr = popxl.constant(0.1, popxl.float32) if as_tensors else 0.1
        loss_scaling = 8.0
        module = AdamOptimizerStep()
        factories, graph = module.create_graph(
            var,
            var,
            lr=lr,
            weight_decay=weight_decay,
            loss_scaling=loss_scaling,
            first_order_dtype=popxl.float32,
        )
        assert graph.graph.outputs == ()
        assert sorted(factories.keys_flat()) == ["first_order", "second_order", "step"]
        state = graph.bind(factories.init())
        for grad in grads:
            scaled = popxl.constant(grad * loss_scaling)
            state.call(var, scaled, *([lr] if as_tensors else []))
        (found,) = run([ops.identity(var)])
    np.testing.assert_allclose(found, adam_w(start, grads, weight_decay, 1e-5), rtol=RTOL)


def test_without_bias_correction_and_with_clipping(ir: popxl.Ir, run: Callable):
    start, grad = np.array([1.0, -2.0], np.float32), np.array([3.0, 4.0], np.float32)
    with popxl.in_sequence():
        var = popxl.variable(start)
        norm = popxl.constant(5.0, popxl.float32)
        factories, graph = AdamOptimizerStep().create_graph(
            var, var, lr=0.5, weight_decay=0.25, bias_correction=False, global_norm=norm,
            global_norm_max=2.0,
        )  # fmt: skip
        assert sorted(factories.keys_flat()) == ["first_order", "second_order"]
        assert factories.first_order.dtype is popxl.float16
        graph.bind(factories.init()).call(var, popxl.constant(grad), norm)
        (found,) = run([ops.identity(var)])
    clipped = grad * 2.0 / 5.0
    first = (0.1 * clipped).astype(np.float16).astype(np.float32)
    update = first / (np.sqrt(0.001 * clipped**2) + 1e-5) + 0.25 * start
    np.testing.assert_allclose(found, start - 0.5 * update, rtol=RTOL)


def test_a_norm_needs_a_limit(ir: popxl.Ir):
    var = popxl.variable(np.ones(2, "float32"))
    norm = popxl.constant(5.0, popxl.float32)
    with pytest.raises(AssertionError, match="global_norm_max"):
        AdamOptimizerStep().create_graph(var, var, lr=0.5, global_norm=norm)


def test_moments_of_shards_are_shards(ir4: popxl.Ir):
    _, shard = popxl.replica_sharded_variable(np.zeros((4, 2), "float32"), popxl.float32)
    _, graph = AdamOptimizerStep().create_graph(shard, shard, lr=0.5)
    assert graph.args.first_order.shape == (2,)
    assert graph.args.second_order.meta_shape == (4, 2)
