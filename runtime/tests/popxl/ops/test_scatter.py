"""Scatter, scatter-reduce and one-hot against loops over elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops
from popxl.ops.scatter_reduce import grouped_scatter_reduce

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor


def distinct(rng: Generator, shape: tuple[int, ...], axis: int, size: int) -> np.ndarray:
    """Indices of ``shape`` below ``size`` that do not repeat along ``axis``."""
    longer = [size if i == axis else n for i, n in enumerate(shape)]
    drawn = np.argsort(rng.random(longer), axis)
    return np.take(drawn, range(shape[axis]), axis).astype(np.int32)


def put(axis: int) -> Any:
    def run(t: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        result = t.copy()
        for at in np.ndindex(indices.shape):
            to = list(at)
            to[axis] = indices[at]
            result[tuple(to)] = values[at]
        return result

    return run


@pytest.mark.parametrize(
    ("shape", "part", "axis"), [((6, 4), (3, 4), 0), ((6, 4), (5, 2), 1), ((2, 6, 3), (2, 4, 2), 1)]
)
def test_scatter(rng: Generator, shape: tuple[int, ...], part: tuple[int, ...], axis: int):
    first, second = (
        [
            rng.normal(size=shape).astype(np.float16),
            distinct(rng, part, axis, shape[axis]),
            rng.normal(size=part).astype(np.float16),
        ]
        for _ in "ab"
    )
    negative = axis - len(shape)
    assert_op(lambda t, i, v: ops.scatter(t, i, v, axis=negative), put(axis), first, second)


REDUCE = {"sum": np.add, "min": np.minimum, "max": np.maximum}


def reduced(reduction: str, axis: int, size: int) -> Any:
    """Element by element; positions that nothing falls on keep the initial value, or 0."""

    def run(data: np.ndarray, indices: np.ndarray, initial: np.ndarray | None = None) -> np.ndarray:
        if indices.ndim == 1:
            line = [-1 if i == axis else 1 for i in range(data.ndim)]
            indices = np.broadcast_to(indices.reshape(line), data.shape)
        shape = [size if i == axis else n for i, n in enumerate(data.shape)]
        result = np.zeros(shape) if initial is None else initial.copy()
        filled = np.full(shape, initial is not None)
        for at in np.ndindex(data.shape):
            to = list(at)
            to[axis] = indices[at]
            key = tuple(to)
            result[key] = REDUCE[reduction](result[key], data[at]) if filled[key] else data[at]
            filled[key] = True
        return result

    return run


@pytest.mark.parametrize("with_initial", [True, False])
@pytest.mark.parametrize("line", [True, False])
@pytest.mark.parametrize("reduction", list(REDUCE))
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 0), ((2, 5, 3), 1), ((3, 5), -1)])
def test_scatter_reduce(
    rng: Generator,
    shape: tuple[int, ...],
    axis: int,
    reduction: str,
    line: bool,
    with_initial: bool,
):
    size = 4
    whole = [size if n == 5 else n for n in shape]

    def inputs() -> list[np.ndarray]:
        arrays = [
            rng.normal(size=shape).astype(np.float16),
            rng.integers(0, size, 5 if line else shape).astype(np.int32),
        ]
        return [*arrays, rng.normal(size=whole).astype(np.float16)][: 3 if with_initial else 2]

    def build(data: popxl.Tensor, indices: popxl.Tensor, *initial: popxl.Tensor) -> popxl.Tensor:
        kwargs: dict[str, Any] = {} if initial else {"axis_size": size}
        return ops.scatter_reduce(data, indices, reduction, *initial, axis=axis, **kwargs)

    positive = axis % len(shape)
    assert_op(build, reduced(reduction, positive, size), inputs(), inputs())


def test_scatter_reduce_none_overwrites(rng: Generator):
    data = rng.normal(size=(3, 2)).astype(np.float32)
    initial = rng.normal(size=(5, 2)).astype(np.float32)
    indices = np.array([4, 0, 2], np.int32)
    (found,) = run_ops(lambda d, i, s: ops.scatter_reduce(d, i, "none", s), data, indices, initial)
    initial[indices] = data
    np.testing.assert_array_equal(found, initial)


@pytest.mark.parametrize("line", [True, False])
def test_grouped_scatter_reduce(rng: Generator, line: bool):
    def oracle(data: np.ndarray, indices: np.ndarray) -> np.ndarray:
        one = reduced("sum", 0, 4)
        return np.stack([one(d, i) for d, i in zip(data, indices, strict=True)])

    first, second = (
        [
            rng.normal(size=(2, 5, 3)).astype(np.float32),
            rng.integers(0, 4, (2, 5) if line else (2, 5, 3)).astype(np.int32),
        ]
        for _ in "ab"
    )
    assert_op(
        lambda d, i: grouped_scatter_reduce(d, i, "sum", axis=1, axis_size=4, group_size=2),
        oracle,
        first,
        second,
    )


@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
def test_onehot(rng: Generator, axis: int):
    def build(t: popxl.Tensor, values: popxl.Tensor) -> popxl.Tensor:
        return ops.onehot(t, popxl.constant(4, popxl.int32), values, axis)

    def oracle(t: np.ndarray, values: np.ndarray) -> np.ndarray:
        hit = np.moveaxis(t[..., None] == np.arange(4), -1, axis)
        return np.where(hit, values[1], values[0])

    first, second = (
        [rng.integers(-1, 5, (2, 3)).astype(np.int32), rng.normal(size=2).astype(np.float16)]
        for _ in "ab"
    )
    assert_op(build, oracle, first, second)


def test_kinds_and_names():
    with main_graph() as graph:
        t, i = tensor((3, 2)), tensor((3, 2), popxl.int32)
        ops.scatter(t, i, t)
        assert last_op(graph) == ("Scatter", ["scatter_out"])
        ops.scatter_reduce(t, i, "sum", axis_size=4)
        assert last_op(graph) == ("ScatterReduce", ["scatterreduce_out"])
        ops.onehot(i, popxl.constant(3), popxl.constant([0.0, 1.0]), -1)
        assert last_op(graph) == ("OneHot", ["onehot_out"])


def test_arguments_of_scatter_reduce():
    with main_graph():
        t, i = tensor((3, 2)), tensor((3, 2), popxl.int32)
        with pytest.raises(ValueError, match="The reduction must be one of"):
            ops.scatter_reduce(t, i, "mean", axis_size=4)
        with pytest.raises(ValueError, match="must be specified"):
            ops.scatter_reduce(t, i, "sum")


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [((3, 2), {"axis": 2}), ((2, 3, 2), {}), ((2,), {}), ((3,), {"enable_index_broadcast": False})],
)
def test_scatter_reduce_that_does_not_fit(shape: tuple[int, ...], arguments: dict[str, Any]):
    with main_graph():
        t, i = tensor((3, 2)), tensor(shape, popxl.int32)
        with pytest.raises(popart.popart_exception):
            ops.scatter_reduce(t, i, "sum", axis_size=4, **arguments)


@pytest.mark.parametrize(
    ("indices", "values", "axis"),
    [((2, 2), (3, 2), 0), ((2,), (2,), 0), ((2, 2), (2, 2), 2), ((2, 2), (2, 2), -3)],
)
def test_scatter_that_does_not_fit(indices: tuple[int, ...], values: tuple[int, ...], axis: int):
    with main_graph():
        t, i, v = tensor((3, 2)), tensor(indices, popxl.int32), tensor(values)
        with pytest.raises(popart.popart_exception):
            ops.scatter(t, i, v, axis=axis)


def test_onehot_needs_a_known_number_of_classes():
    with main_graph():
        t, values = tensor((3,), popxl.int32), popxl.constant([0.0, 1.0])
        with pytest.raises(popart.popart_exception, match="constant"):
            ops.onehot(t, tensor((), popxl.int32), values, -1)
        with pytest.raises(popart.popart_exception, match="axis 2"):
            ops.onehot(t, popxl.constant(3), values, 2)
