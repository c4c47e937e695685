"""Reductions, searches along an axis, and softmax against NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import (
    assert_half_close,
    foreign_tensor,
    last_op,
    main_graph,
    run_ops,
    run_replicas,
    tensor,
)

FLOAT32_RTOL = 3e-6
FLOAT32_ATOL = 3e-6


def logsumexp(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.log(np.exp(x).sum(axis, keepdims=keepdims))


def lower_median(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    if not axis:
        return x
    return np.quantile(x, 0.5, axis, method="inverted_cdf", keepdims=keepdims)


@dataclass(frozen=True)
class Case:
    """A reduction, what it must compute, and how PopART calls it."""

    op: Callable[..., popxl.Tensor]
    oracle: Callable[..., np.ndarray]
    kind: str
    names: tuple[str, ...]


CASES = {
    "sum": Case(ops.sum, np.sum, "ReduceSum", ("sum_out",)),
    "mean": Case(ops.mean, np.mean, "ReduceMean", ("mean_out",)),
    "max": Case(ops.max, np.max, "ReduceMax", ("max_out",)),
    "min": Case(ops.min, np.min, "ReduceMin", ("min_out",)),
    "prod": Case(ops.prod, np.prod, "ReduceProd", ("prod_out",)),
    "median": Case(ops.median, lower_median, "ReduceMedian", ("median_out", "median_indices_out")),
    "l1": Case(
        ops.l1, lambda x, a, keepdims: np.sum(abs(x), a, keepdims=keepdims), "ReduceL1", ("l1_out",)
    ),
    "l2": Case(
        ops.l2,
        lambda x, a, keepdims: np.sqrt(np.sum(x**2, a, keepdims=keepdims)),
        "ReduceL2",
        ("l2_out",),
    ),
    "logsum": Case(
        ops.logsum,
        lambda x, a, keepdims: np.log(np.sum(x, a, keepdims=keepdims)),
        "ReduceLogSum",
        ("logsum_out",),
    ),
    "logsumexp": Case(ops.logsumexp, logsumexp, "ReduceLogSumExp", ("logsumexp_out",)),
    "sumsquare": Case(
        ops.sumsquare,
        lambda x, a, keepdims: np.sum(x**2, a, keepdims=keepdims),
        "ReduceSumSquare",
        ("sumsquare_out",),
    ),
}
SHAPE = (3, 4, 5)
AXES = [None, 0, -1, 1, (0, 2), [-2, 0], (0, 1, 2), (), []]


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def draw(case: Case, rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Positive where a logarithm of a sum is taken; near one where all is multiplied."""
    if case.kind in ("ReduceLogSum", "ReduceProd"):
        return rng.uniform(0.7, 1.4, size=shape)
    return rng.normal(size=shape) * 2


def oracle(case: Case, x: np.ndarray, axis: object, keepdims: bool) -> np.ndarray:
    """In float64."""
    axes = tuple(range(x.ndim)) if axis is None else axis
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
    axes = tuple(a % x.ndim for a in axes)
    return np.asarray(case.oracle(x.astype(np.float64), axes, keepdims=keepdims))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_shape_kind_and_names(case: Case, axis: object, keepdims: bool):
    with main_graph() as graph:
        result = case.op(tensor(SHAPE, popxl.float16), axis, keepdims)
        assert last_op(graph) == (case.kind, list(case.names))
        assert result.shape == oracle(case, np.ones(SHAPE), axis, keepdims).shape
        assert result.dtype is popxl.float16


def test_float32_result_over_all_choices_of_axes(case: Case, rng: Generator):
    x = draw(case, rng, SHAPE).astype(np.float32)
    choices = list(itertools.product(AXES, [False, True]))
    results = run_ops(lambda t: [case.op(t, *choice) for choice in choices], x)
    for found, (axis, keepdims) in zip(results, choices, strict=True):
        wanted = oracle(case, x, axis, keepdims)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, FLOAT32_RTOL, FLOAT32_ATOL)


def test_replicas_with_values_of_their_own(case: Case, rng: Generator):
    x = draw(case, rng, (2, *SHAPE)).astype(np.float32)
    choices = list(itertools.product(AXES, [False, True]))
    results = run_replicas(lambda t: [case.op(t, *choice) for choice in choices], x)
    for found, (axis, keepdims) in zip(results, choices, strict=True):
        wanted = np.stack([oracle(case, x[replica], axis, keepdims) for replica in range(2)])
        np.testing.assert_allclose(found, wanted, FLOAT32_RTOL, FLOAT32_ATOL)


def test_float16_accumulates_in_float32(case: Case, rng: Generator):
    x = draw(case, rng, (3, 400)).astype(np.float16)
    if case.kind == "ReduceProd":
        x = x[:, :20]
    (found,) = run_ops(lambda t: case.op(t, 1), x)
    assert_half_close(found, oracle(case, x, 1, False), ulps=1)


@pytest.mark.parametrize("name", ["sum", "max", "min", "prod", "median", "l1", "sumsquare"])
def test_integers_stay_integers(name: str, rng: Generator):
    case = CASES[name]
    x = rng.integers(-5, 6, size=(4, 7)).astype(np.int32)
    (found,) = run_ops(lambda t: case.op(t, 1), x)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, oracle(case, x, 1, False))


def test_axes_out_of_range(case: Case):
    with main_graph():
        for axis in (3, -4, (0, 5)):
            with pytest.raises(popart.popart_exception, match="out of range"):
                case.op(tensor(SHAPE), axis)


def test_takes_tensors_of_the_current_graph_only(case: Case):
    foreign = foreign_tensor()
    with main_graph():
        with pytest.raises(TypeError, match="not a Tensor"):
            case.op(1.0)
        with pytest.raises(ValueError, match="not in the current Graph"):
            case.op(foreign)


def test_logsumexp_and_l2_do_not_overflow():
    x = np.array([1e4, 1e4], np.float32)
    exponent, norm = run_ops(lambda t: [ops.logsumexp(t), ops.l2(t)], x)
    np.testing.assert_allclose(exponent, 1e4 + np.log(2), FLOAT32_RTOL)
    np.testing.assert_allclose(norm, 1e4 * np.sqrt(2), FLOAT32_RTOL)
    huge = np.array([3e38, 0.0], np.float32)
    (norm,) = run_ops(ops.l2, huge)
    np.testing.assert_allclose(norm, 3e38, FLOAT32_RTOL)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(
    ("op", "oracle_op", "kind"),
    [(ops.argmax, np.argmax, "ArgMax"), (ops.argmin, np.argmin, "ArgMin")],
)
def test_argmax_and_argmin(
    op: Callable, oracle_op: Callable, kind: str, dim: int, keepdim: bool, rng: Generator
):
    x = rng.integers(0, 4, size=(2, 6, 9)).astype(np.float16)  # with ties
    (one,) = run_ops(lambda t: op(t, dim, keepdim), x[0])
    (two,) = run_replicas(lambda t: op(t, dim, keepdim), x)
    wanted = np.stack([oracle_op(x[r], dim, keepdims=keepdim) for r in range(2)])
    assert one.dtype == two.dtype == np.int32
    np.testing.assert_array_equal(one, wanted[0])
    np.testing.assert_array_equal(two, wanted)
    with main_graph() as graph:
        op(tensor((2,)))
        assert last_op(graph) == (kind, [f"{kind.lower()}_out"])


@pytest.mark.parametrize("op", [ops.argmax, ops.argmin, ops.cumsum])
def test_dim_out_of_range(op: Callable):
    with main_graph():
        for shape, dim in (((), 0), ((2, 3), 2), ((2, 3), -3)):
            with pytest.raises(popart.popart_exception, match="out of range"):
                op(tensor(shape), dim)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_cumsum(dim: int, dtype: type, rng: Generator):
    x = (rng.normal(size=(2, 4, 6)) * 10).astype(dtype)
    (one,) = run_ops(lambda t: ops.cumsum(t, dim), x[0])
    (two,) = run_replicas(lambda t: ops.cumsum(t, dim), x)
    wanted = np.stack([np.cumsum(x[r].astype(np.float64), dim) for r in range(2)])
    np.testing.assert_allclose(one, wanted[0], FLOAT32_RTOL, FLOAT32_ATOL)
    np.testing.assert_allclose(two, wanted, FLOAT32_RTOL, FLOAT32_ATOL)
    assert one.dtype == two.dtype == dtype


def test_cumsum_adds_its_axis_as_a_constant():
    with main_graph() as graph:
        ops.cumsum(tensor((2, 3)), -1)
        assert last_op(graph) == ("CumSum", ["cumsum_out"])
        (constant,) = graph.constants
        assert (constant.name, constant.dtype, constant.shape) == ("dim", popxl.int64, ())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("largest", [True, False])
def test_topk(axis: int, largest: bool, rng: Generator):
    x = rng.integers(0, 6, size=(2, 7, 8)).astype(np.float32)  # with ties
    build = lambda t: ops.topk(t, 3, axis, largest, True)  # noqa: E731
    order = np.argsort(-x if largest else x, axis=axis + 1, kind="stable")
    indices = order[:, :3] if axis == 0 else order[:, :, :3]
    values = np.take_along_axis(x, indices, axis + 1)
    one, two = run_ops(build, x[0]), run_replicas(build, x)
    np.testing.assert_array_equal(one[0], values[0])
    np.testing.assert_array_equal(one[1], indices[0])
    np.testing.assert_array_equal(two[0], values)
    np.testing.assert_array_equal(two[1], indices)
    assert one[1].dtype == np.int32


def test_topk_limits():
    with main_graph() as graph:
        t = tensor((2, 3))
        values, indices = ops.topk(t, 3, 1, True, True)
        assert last_op(graph) == ("TopK", ["topk_out_value", "topk_out_indices"])
        assert (values.shape, indices.shape, indices.dtype) == ((2, 3), (2, 3), popxl.int32)
        for k, axis in ((4, 1), (1, -1), (1, 2)):
            with pytest.raises(popart.popart_exception, match="topk"):
                ops.topk(t, k, axis, True, True)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_histogram(absolute: bool, dtype: type, rng: Generator):
    levels = [-2.0, -0.5, 0.0, 1.5]
    x = (np.round(rng.normal(size=(2, 9, 8)) * 4) / 2).astype(dtype)  # many lie on a level
    build = lambda t: ops.histogram(t, levels, absolute)  # noqa: E731
    edges = np.array([-np.inf, *levels, np.inf])
    counted = np.abs(x) if absolute else x
    inside = (counted[..., None] >= edges[:-1]) & (counted[..., None] < edges[1:])
    wanted = inside.sum((1, 2))
    (one,), (two,) = run_ops(build, x[0]), run_replicas(build, x)
    assert one.dtype == two.dtype == np.uint32
    np.testing.assert_array_equal(one, wanted[0])
    np.testing.assert_array_equal(two, wanted)


def test_histogram_errors():
    with main_graph():
        for levels in ([1.0, 1.0], [2.0, 1.0]):
            with pytest.raises(ValueError, match="not a monotonically increasing list"):
                ops.histogram(tensor((2,)), levels, False)
        with pytest.raises(popart.popart_exception, match="float16 or float32"):
            ops.histogram(tensor((2,), popxl.int32), [1.0], False)


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_softmax(axis: int, dtype: type, rng: Generator):
    x = (rng.normal(size=(2, *SHAPE)) * 5).astype(dtype)
    exact = x.astype(np.float64)
    along = axis % 3 + 1
    wanted = np.exp(exact) / np.exp(exact).sum(along, keepdims=True)
    (one,) = run_ops(lambda t: ops.softmax(t, axis), x[0])
    (two,) = run_replicas(lambda t: ops.softmax(t, axis), x)
    for found, expected in ((one, wanted[0]), (two, wanted)):
        if dtype is np.float16:
            assert_half_close(found, expected)
        else:
            np.testing.assert_allclose(found, expected, FLOAT32_RTOL, FLOAT32_ATOL)


def test_softmax_does_not_overflow_and_checks_its_axis():
    (found,) = run_ops(lambda t: ops.softmax(t, 0), np.array([6e4, 6e4, -6e4], np.float16))
    np.testing.assert_array_equal(found, np.array([0.5, 0.5, 0], np.float16))
    with main_graph() as graph:
        ops.softmax(tensor((2,)), -1)
        assert last_op(graph) == ("Softmax", ["softmax_out"])
        for shape, axis in (((2,), 1), ((2,), -2), ((), 0)):
            with pytest.raises(popart.popart_exception, match="out of range"):
                ops.softmax(tensor(shape), axis)
