"""Negative log-likelihood against its formula, and its gradient against torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

REDUCTIONS = ["mean", "sum", "none"]


def probabilities(rng: Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    raw = np.exp(rng.normal(size=shape))
    return (raw / raw.sum(-1, keepdims=True)).astype(dtype)


def nll(reduction: str, ignored: int | None, log_prob: bool) -> Any:
    def run(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        losses, count = np.zeros(labels.shape), 0
        for at in np.ndindex(labels.shape):
            if labels[at] != ignored:
                p = probs[(*at, labels[at])]
                losses[at] = -(p if log_prob else np.log(p))
                count += 1
        return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / count}[reduction]

    return run


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("log_prob", [True, False])
@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(rng: Generator, reduction: str, ignored: int | None, log_prob: bool, dtype: type):
    def inputs() -> list[np.ndarray]:
        probs = probabilities(rng, (3, 4, 5), dtype)
        labels = rng.permuted(np.arange(12) % 5).reshape(3, 4).astype(np.int32)
        return [np.log(probs) if log_prob else probs, labels]

    assert_op(
        lambda p, labels: ops.nll_loss(p, labels, ignored, reduction, log_prob),
        nll(reduction, ignored, log_prob),
        inputs(),
        inputs(),
    )


@pytest.mark.parametrize(("dtype", "smallest"), [(np.float16, 6.1e-5), (np.float32, 1e-7)])
def test_probability_zero_is_clamped(dtype: type, smallest: float):
    probs = np.array([[0, 1]], dtype)
    (found,) = run_ops(ops.nll_loss, probs, np.zeros(1, np.int32))
    np.testing.assert_allclose(found, -np.log(smallest), rtol=1e-3)


@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_the_softmax_input(rng: Generator, reduction: str, ignored: int | None):
    def build(logits: popxl.Tensor, labels: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
        probs = ops.softmax(logits, -1)
        return ops.nll_loss_with_softmax_grad(probs, labels, 3.0, ignored, reduction)

    def oracle(logits: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        x = torch.from_numpy(logits).requires_grad_()
        index = -100 if ignored is None else ignored
        loss = torch.nn.functional.cross_entropy(
            x, torch.from_numpy(labels).long(), ignore_index=index, reduction=reduction
        )
        loss.backward(3.0 * torch.ones_like(loss))
        assert x.grad is not None
        return [loss.detach().numpy(), x.grad.numpy()]

    first, second = (
        [rng.normal(size=(6, 5)).astype(np.float32), np.array([0, 2, 4, 2, 1, 3], np.int32)]
        for _ in "ab"
    )
    assert_op(build, oracle, first, second)


def test_gradient_may_be_a_tensor(rng: Generator):
    probs = probabilities(rng, (4, 3), np.float32)
    labels = np.array([0, 1, 2, 1], np.int32)

    def build(p: popxl.Tensor, labels: popxl.Tensor, g: popxl.Tensor) -> list[popxl.Tensor]:
        return [
            ops.nll_loss_with_softmax_grad(p, labels, g)[1],
            ops.nll_loss_with_softmax_grad(p, labels, 2.5)[1],
        ]

    by_tensor, by_number = run_ops(build, probs, labels, np.array(2.5, np.float32))
    np.testing.assert_array_equal(by_tensor, by_number)


def test_kinds_and_names():
    with main_graph() as graph:
        p, labels = tensor((3, 2)), tensor((3,), popxl.int32)
        ops.nll_loss(p, labels)
        assert last_op(graph) == ("Nll", ["loss"])
        ops.nll_loss_with_softmax_grad(p, labels)
        assert last_op(graph)[0] == "NlllWithSoftmaxGradDirect"
        assert last_op(graph)[1][1] == "dx"


def test_arguments():
    with main_graph():
        p, labels = tensor((3, 2)), tensor((3,), popxl.int32)
        with pytest.raises(ValueError, match="Not a valid reduction"):
            ops.nll_loss(p, labels, reduction="max")
        for wrong in (tensor((2,), popxl.int32), tensor((3,))):
            with pytest.raises(popart.popart_exception, match="labels"):
                ops.nll_loss(p, wrong)
