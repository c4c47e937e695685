"""Slices and updates whose position is a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

# shape, axes, sizes
CASES = [((7, 3), [0], [2]), ((4, 7, 5), [2, 0], [3, 2]), ((6,), [0], [6]), ((3, 4), [1], [1])]


def window(index: np.ndarray, shape: tuple[int, ...], axes: list[int], sizes: list[int]) -> Any:
    result = [slice(None)] * len(shape)
    for start, axis, size in zip(index.reshape(-1), axes, sizes, strict=True):
        result[axis] = slice(int(start), int(start) + size)
    return tuple(result)


def inputs(
    rng: Generator, shape: tuple[int, ...], axes: list[int], sizes: list[int], dtype: type
) -> list[np.ndarray]:
    starts = [
        rng.integers(0, shape[axis] - size + 1) for axis, size in zip(axes, sizes, strict=True)
    ]
    part = list(shape)
    for axis, size in zip(axes, sizes, strict=True):
        part[axis] = size
    t, update = (rng.normal(size=s).astype(np.float16) for s in (shape, part))
    return [t, np.array(starts, dtype), update]


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
@pytest.mark.parametrize(("shape", "axes", "sizes"), CASES)
def test_dynamic_slice(
    rng: Generator, shape: tuple[int, ...], axes: list[int], sizes: list[int], dtype: type
):
    first, second = (inputs(rng, shape, axes, sizes, dtype)[:2] for _ in "ab")
    assert_op(
        lambda t, i: ops.dynamic_slice(t, i, axes, sizes, True),
        lambda t, i: t[window(i, shape, axes, sizes)],
        first,
        second,
    )


def updated(shape: tuple[int, ...], axes: list[int], sizes: list[int]) -> Any:
    def run(t: np.ndarray, index: np.ndarray, update: np.ndarray) -> np.ndarray:
        result = t.copy()
        result[window(index, shape, axes, sizes)] = update
        return result

    return run


@pytest.mark.parametrize(("shape", "axes", "sizes"), CASES)
def test_dynamic_update_returns_a_copy(
    rng: Generator, shape: tuple[int, ...], axes: list[int], sizes: list[int]
):
    def build(t: popxl.Tensor, i: popxl.Tensor, u: popxl.Tensor) -> list[popxl.Tensor]:
        return [ops.dynamic_update(t, i, u, axes, sizes, True), t]

    change = updated(shape, axes, sizes)
    first, second = (inputs(rng, shape, axes, sizes, np.uint32) for _ in "ab")
    assert_op(build, lambda t, i, u: [change(t, i, u), t], first, second)


@pytest.mark.parametrize(("shape", "axes", "sizes"), CASES)
def test_dynamic_update_in_place(
    rng: Generator, shape: tuple[int, ...], axes: list[int], sizes: list[int]
):
    def build(t: popxl.Tensor, i: popxl.Tensor, u: popxl.Tensor) -> list[popxl.Tensor]:
        return [ops.dynamic_update_(t, i, u, axes, sizes, True), t]

    change = updated(shape, axes, sizes)
    first, second = (inputs(rng, shape, axes, sizes, np.uint32) for _ in "ab")
    assert_op(build, lambda t, i, u: [change(t, i, u)] * 2, first, second)


def test_an_index_without_axes_is_one_start(rng: Generator):
    t = rng.normal(size=(5, 2)).astype(np.float32)
    index = np.array(3, np.int32)
    (found,) = run_ops(lambda t, i: ops.dynamic_slice(t, i, [0], [2], False), t, index)
    np.testing.assert_array_equal(found, t[3:])


def test_one_update_per_iteration(rng: Generator):
    """A cache filled row by row in a loop."""
    rows = rng.normal(size=(4, 3)).astype(np.float32)

    def build(rows: popxl.Tensor) -> popxl.Tensor:
        def step(
            position: popxl.Tensor, cache: popxl.Tensor, rows: popxl.Tensor
        ) -> tuple[popxl.Tensor, ...]:
            row = ops.dynamic_slice(rows, position, [0], [1], True)
            cache = ops.dynamic_update(cache, position, row * 2.0, [0], [1], True)
            return position + 1, cache

        start = popxl.constant(np.zeros(1, np.uint32))
        empty = ops.init((4, 3), popxl.float32)
        graph = rows.ir.create_graph(step, start, empty, rows)
        return ops.repeat(graph, 3, start, empty, inputs_dict={graph.inputs[2]: rows})[1]

    (found,) = run_ops(build, rows)
    np.testing.assert_array_equal(found[:3], 2 * rows[:3])
    np.testing.assert_array_equal(found[3], 0)


def test_kinds_and_names():
    with main_graph() as graph:
        t, i, u = tensor((3, 2)), tensor((1,), popxl.uint32), tensor((1, 2))
        ops.dynamic_slice(t, i, [0], [1], True)
        assert last_op(graph) == ("DynamicSlice", ["dynamic_slice_out"])
        ops.dynamic_update(t, i, u, [0], [1], True)
        assert last_op(graph) == ("DynamicUpdate", ["dynamic_update_out"])
        ops.dynamic_update_(t, i, u, [0], [1], True)
        assert last_op(graph) == ("DynamicUpdateInplace", ["dynamicupdateinplace_out"])


@pytest.mark.parametrize(("shape", "dtype"), [((2,), popxl.uint32), ((1,), popxl.float32)])
def test_index_that_does_not_fit(shape: tuple[int, ...], dtype: popxl.dtype):
    with main_graph():
        t, i = tensor((3, 2)), tensor(shape, dtype)
        with pytest.raises(popart.popart_exception, match="index"):
            ops.dynamic_slice(t, i, [0], [1], True)
