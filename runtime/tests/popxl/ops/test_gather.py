"""Elements by index against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

CASES = [
    ((7, 3), (4,), 0),
    ((7, 3), (), 0),
    ((7, 3), (2, 3), 0),
    ((2, 7, 3), (5,), 1),
    ((2, 3, 7), (2, 2), 2),
    ((2, 3, 7), (4,), -1),
]


@pytest.mark.parametrize("index_dtype", [np.int32, np.uint32, np.uint8])
@pytest.mark.parametrize("op", [ops.gather, ops.tied_gather])
@pytest.mark.parametrize(("shape", "indices", "axis"), CASES)
def test_gather(
    rng: Generator,
    op: Callable[..., popxl.Tensor],
    shape: tuple[int, ...],
    indices: tuple[int, ...],
    axis: int,
    index_dtype: type,
):
    first, second = (
        [
            rng.normal(size=shape).astype(np.float16),
            np.asarray(rng.integers(0, 7, indices), index_dtype),
        ]
        for _ in "ab"
    )
    assert_op(lambda t, i: op(t, i, axis), lambda t, i: np.take(t, i, axis), first, second)


@pytest.mark.parametrize(("axis", "shape"), [(0, (5, 3)), (1, (2, 5, 3))])
def test_out_of_range_gives_zeros(rng: Generator, axis: int, shape: tuple[int, ...]):
    """Negative indices do not wrap: they are out of range too."""
    indices = np.array([[-1, 4], [5, 0], [-5, 2**31 - 1]], np.int32)
    inside = (indices >= 0) & (indices < 5)

    def oracle(t: np.ndarray, i: np.ndarray) -> np.ndarray:
        taken = np.take(t, np.where(inside, i, 0), axis)
        return taken * inside.reshape(*[1] * axis, 3, 2, 1)

    first, second = ([1 + rng.random(shape).astype(np.float32), indices] for _ in "ab")
    assert_op(lambda t, i: ops.gather(t, i, axis, zero_OOR=True), oracle, first, second)


def test_out_of_range_does_not_crash(rng: Generator):
    t = rng.normal(size=(5, 3)).astype(np.float32)
    (found,) = run_ops(ops.gather, t, np.array([7, 2, -3], np.int32))
    np.testing.assert_array_equal(found[1], t[2])


@pytest.mark.parametrize("axis", [1, 2])
def test_groupedgather(rng: Generator, axis: int):
    shape = {1: (3, 7, 2), 2: (3, 2, 7)}[axis]

    def oracle(t: np.ndarray, i: np.ndarray) -> np.ndarray:
        return np.stack([np.take(t[g], i[g], axis - 1) for g in range(3)])

    first, second = (
        [rng.normal(size=shape).astype(np.float32), rng.integers(0, 7, (3, 4)).astype(np.int32)]
        for _ in "ab"
    )
    assert_op(lambda t, i: ops.groupedgather(t, i, axis, group_size=3), oracle, first, second)


def test_groupedgather_of_one_group_is_gather(rng: Generator):
    arrays = [rng.normal(size=(5, 3)).astype(np.float32), np.array([4, 1], np.int32)]
    (found,) = run_ops(ops.groupedgather, *arrays)
    np.testing.assert_array_equal(found, arrays[0][[4, 1]])


def test_kinds_and_names():
    with main_graph() as graph:
        t, i = tensor((3, 2)), tensor((2,), popxl.int32)
        ops.gather(t, i)
        assert last_op(graph) == ("Gather", ["gather_out"])
        ops.tied_gather(t, i)
        assert last_op(graph) == ("PopartTiedGather", ["tiedgather_out"])


@pytest.mark.parametrize(
    ("shape", "indices", "arguments"),
    [
        ((3, 2), ((2,), popxl.int32), {"axis": 2}),
        ((3, 2), ((2,), popxl.int32), {"axis": -3}),
        ((), ((2,), popxl.int32), {"axis": 0}),
        ((3, 2), ((2,), popxl.float32), {}),
        ((3, 2), ((3,), popxl.int32), {"axis": 0, "group_size": 3}),
        ((3, 2), ((2,), popxl.int32), {"axis": 1, "group_size": 3}),
    ],
)
def test_gather_that_does_not_fit(
    shape: tuple[int, ...], indices: tuple[Any, ...], arguments: dict[str, Any]
):
    op = ops.groupedgather if "group_size" in arguments else ops.gather
    with main_graph():
        t, i = tensor(shape), tensor(*indices)
        with pytest.raises(popart.popart_exception):
            op(t, i, **arguments)
