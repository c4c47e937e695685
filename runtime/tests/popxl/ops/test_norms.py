"""Batch, group and layer normalisation against their formulas in float64."""

from __future__ import annotations

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor


def batch_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> np.ndarray:
    columns = (-1, *[1] * (x.ndim - 2))
    scale, bias, mean, var = (a.reshape(columns) for a in (scale, bias, mean, var))
    return scale * (x - mean) / np.sqrt(var + 1e-3) + bias


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 5), (1, 4, 2, 3, 2)])
def test_batch_norm_inference(rng: Generator, shape: tuple[int, ...], dtype: type):
    def inputs() -> list[np.ndarray]:
        params = [rng.normal(size=4), rng.normal(size=4), rng.normal(size=4), rng.random(4) + 0.1]
        return [a.astype(dtype) for a in (rng.normal(size=shape), *params)]

    def build(*tensors: popxl.Tensor) -> popxl.Tensor:
        return ops.batch_norm_inference(*tensors, epsilon=1e-3)

    assert_op(build, batch_norm, inputs(), inputs())


def test_batch_norm_rounds_once():
    """The scale's square root is not rounded to half: 3 / sqrt(2) * 1000."""
    one = np.ones(1, np.float16)
    x = np.full((1, 1, 1), 1000, np.float16)
    (found,) = run_ops(
        lambda *t: ops.batch_norm_inference(*t, epsilon=0.0), x, 3 * one, 0 * one, 0 * one, 2 * one
    )
    assert found.item() == np.float16(3 / np.sqrt(2) * 1000)


@pytest.mark.parametrize(
    ("shape", "channels"), [((2, 4), 4), ((2, 4, 3), 3), ((2, 4, 3), 1), ((2, 1, 3), 4)]
)
def test_batch_norm_that_does_not_fit(shape: tuple[int, ...], channels: int):
    with main_graph():
        t, c = tensor(shape), tensor((channels,))
        with pytest.raises(popart.popart_exception, match="batch_norm"):
            ops.batch_norm_inference(t, c, c, c, c)


def group_norm(groups: int, eps: float) -> object:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        rows = x.reshape(x.shape[0], groups, -1)
        mean, var = rows.mean(-1, keepdims=True), rows.var(-1, keepdims=True)
        columns = (-1, *[1] * (x.ndim - 2))
        normal = ((rows - mean) / np.sqrt(var + eps)).reshape(x.shape)
        return normal * weight.reshape(columns) + bias.reshape(columns)

    return run


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 6), 1), ((3, 6), 3), ((2, 6, 5), 2), ((2, 6, 3, 2), 6)]
)
def test_group_norm(rng: Generator, shape: tuple[int, ...], groups: int, dtype: type):
    first, second = ([rng.normal(1, 2, s).astype(dtype) for s in (shape, (6,), (6,))] for _ in "ab")
    assert_op(
        lambda x, w, b: ops.group_norm(x, w, b, groups, eps=1e-2),
        group_norm(groups, 1e-2),
        first,
        second,
    )


@pytest.mark.parametrize("shape", [(5, 64), (2, 64, 3)])
def test_layer_norm(rng: Generator, shape: tuple[int, ...]):
    """Axis 1 has the weights; all axes but the first are normalised over."""
    first, second = (
        [rng.normal(3, 2, s).astype(np.float16) for s in (shape, (64,), (64,))] for _ in "ab"
    )
    assert_op(ops.layer_norm, group_norm(1, 1e-5), first, second)


def test_layer_norm_of_large_values(rng: Generator):
    """Squares that float16 cannot hold."""
    first, second = (
        [
            (3e4 * rng.uniform(-1, 1, (3, 32))).astype(np.float16),
            np.ones(32, np.float16),
            np.zeros(32, np.float16),
        ]
        for _ in "ab"
    )
    assert_op(ops.layer_norm, group_norm(1, 1e-5), first, second)


def test_statistics_are_outputs(rng: Generator):
    x = rng.normal(size=(2, 6, 5)).astype(np.float32)

    def build(x: popxl.Tensor) -> list[popxl.Tensor]:
        ones = popxl.constant(np.ones(6, np.float32))
        out = ops.group_norm(x, ones, ones, 3, eps=0.1)
        values = out._value.producer.outputs
        return [popxl.Tensor._from_value(value) for value in values[1:]]

    rows = x.astype(np.float64).reshape(6, -1)
    mean, inverse = run_ops(build, x)
    np.testing.assert_allclose(mean, rows.mean(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(rows.var(-1) + 0.1), rtol=1e-5)


def test_kinds_and_names():
    with main_graph() as graph:
        c = tensor((4,))
        ops.batch_norm_inference(tensor((2, 4, 3)), c, c, c, c)
        assert last_op(graph) == ("BatchNormalization", ["batch_norm_out"])
        names = ["group_norm_out", "group_norm_mean", "group_norm_inv_std_dev"]
        ops.layer_norm(tensor((2, 4)), c, c)
        assert last_op(graph) == ("GroupNormalization", names)


def test_groups_that_do_not_divide_fail_when_the_session_compiles(rng: Generator):
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((2, 6), (6,), (6,))]
    with pytest.raises(popart.popart_exception, match="4 groups"):
        run_ops(lambda x, w, b: ops.group_norm(x, w, b, 4), *arrays)
