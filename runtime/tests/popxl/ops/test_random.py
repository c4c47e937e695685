"""Random numbers: their distribution, and that they depend on the seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

COUNT = 40_000
STANDARD_ERRORS = 5  # a right mean is further off once in two million seeds
SEED = np.array([3, 2**32 - 7], np.uint32)
OTHER = np.array([3, 2**32 - 6], np.uint32)

Draw = Callable[[popxl.Tensor], popxl.Tensor]


def assert_mean(values: np.ndarray, wanted: float, deviation: float) -> None:
    error = abs(values.astype(np.float64).mean() - wanted)
    assert error < STANDARD_ERRORS * deviation / math.sqrt(values.size)


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.float32])
def test_random_uniform(dtype: popxl.dtype):
    (found,) = run_ops(lambda s: ops.random_uniform(s, (200, 200), -1.0, 3.0, dtype), SEED)
    assert found.dtype == dtype.as_numpy()
    assert found.shape == (200, 200)
    assert found.min() >= -1.0
    assert found.max() <= 3.0
    deviation = 4 / math.sqrt(12)
    assert_mean(found, 1.0, deviation)
    assert_mean((found.astype(np.float64) - 1) ** 2, deviation**2, 16 / math.sqrt(180))
    counts, _ = np.histogram(found.astype(np.float64), bins=8, range=(-1, 3))
    assert np.all(np.abs(counts - COUNT / 8) < STANDARD_ERRORS * math.sqrt(COUNT / 8))


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.float32])
def test_random_normal(dtype: popxl.dtype):
    (found,) = run_ops(lambda s: ops.random_normal(s, (COUNT,), 2.0, 0.5, dtype), SEED)
    assert found.dtype == dtype.as_numpy()
    normal = (found.astype(np.float64) - 2.0) / 0.5
    assert_mean(normal, 0.0, 1.0)
    assert_mean(normal**2, 1.0, math.sqrt(2))
    assert_mean(normal**3, 0.0, math.sqrt(15))
    assert_mean(normal**4, 3.0, math.sqrt(96))


def test_neighbours_do_not_correlate():
    (found,) = run_ops(lambda s: ops.random_normal(s, (COUNT,)), SEED)
    assert_mean(found[1:] * found[:-1], 0.0, 1.0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: ops.random_uniform(s, (50,)),
        lambda s: ops.random_normal(s, (50,)),
        lambda s: ops.dropout(popxl.constant(np.ones(50, np.float32)), s, 0.5),
    ],
)
def test_the_seed_decides(draw: Draw):
    (once,), (again,), (other,) = (run_ops(draw, seed) for seed in (SEED, SEED, OTHER))
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
    (both,) = run_ops(draw, np.stack([SEED, OTHER]), replicas=2)
    np.testing.assert_array_equal(both, np.stack([once, other]))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.75, 1.0])
def test_dropout(p: float):
    ones = np.full((200, 200), 3.0, np.float32)
    (found,) = run_ops(lambda t, s: ops.dropout(t, s, p), ones, SEED)
    kept = found != 0
    assert_mean(kept, 1 - p, math.sqrt(p * (1 - p)) + 1e-9)
    np.testing.assert_allclose(found[kept], 3.0 / (1 - p) if p < 1 else 0.0, rtol=1e-6)


def test_dropout_never_yields_nan_for_infinities():
    x = np.array([np.inf, -np.inf] * 50, np.float16)
    (found,) = run_ops(lambda t, s: ops.dropout(t, s, 0.5), x, SEED)
    assert not np.any(np.isnan(found))


@pytest.mark.parametrize("shape", [(20, 1), (1, 30), (30,), (1, 1)])
def test_shaped_dropout_repeats_its_mask(shape: tuple[int, ...]):
    x = np.ones((20, 30), np.float32)
    (found,) = run_ops(lambda t, s: ops.shaped_dropout(t, s, shape, 0.4), x, SEED)
    repeated = [axis for axis in (-2, -1) if -axis > len(shape) or shape[axis] == 1]
    for axis in repeated:
        assert np.all(found == np.take(found, [0], axis))
    for axis in {-2, -1} - {*repeated}:
        assert np.any(found != np.take(found, [0], axis))
    assert {*np.unique(found).tolist()} <= {0.0, np.float32(1 / 0.6).item()}


def test_split_random_seed():
    (a, b, c), (d, *_), (e, *_) = (
        run_ops(lambda s: list(ops.split_random_seed(s, 3)), seed) for seed in (SEED, SEED, OTHER)
    )
    assert a.dtype == np.uint32
    assert a.shape == (2,)
    assert len({tuple(seed.tolist()) for seed in (a, b, c, e, SEED, OTHER)}) == 6
    np.testing.assert_array_equal(a, d)


def test_split_seeds_draw_different_numbers():
    def build(seed: popxl.Tensor) -> list[popxl.Tensor]:
        return [ops.random_normal(s, (COUNT,)) for s in ops.split_random_seed(seed)]

    first, second = run_ops(build, SEED)
    assert_mean(first * second, 0.0, 1.0)


def test_kinds_and_names():
    with main_graph() as graph:
        t, seed = tensor((3,)), tensor((2,), popxl.uint32)
        cases = [
            (lambda: ops.random_uniform(seed, (2,)), "RandomUniform", "random_uniform_out"),
            (lambda: ops.random_normal(seed, (2,)), "RandomNormal", "random_normal_out"),
            (lambda: ops.dropout(t, seed, 0.1), "Dropout", "dropout_out"),
            (
                lambda: ops.shaped_dropout(t, seed, (1,), 0.1),
                "ShapedDropout",
                "shapeddropout_out",
            ),
            (lambda: ops.split_random_seed(seed, 1), "ModifyRandomSeed", "modified_seed"),
        ]
        for make, kind, name in cases:
            make()
            assert last_op(graph) == (kind, [name])


def test_arguments():
    with main_graph():
        seed = tensor((2,), popxl.uint32)
        for wrong in (tensor((3,), popxl.uint32), tensor((2,), popxl.int32)):
            with pytest.raises(ValueError, match="uint32"):
                ops.split_random_seed(wrong)
            with pytest.raises(popart.popart_exception, match="seed"):
                ops.random_uniform(wrong, (2,))
        with pytest.raises(popart.popart_exception, match="float16 or float32"):
            ops.random_normal(seed, (2,), dtype=popxl.int32)
        with pytest.raises(popart.popart_exception):
            ops.shaped_dropout(tensor((3,)), seed, (2,), 0.1)
