"""``tensor[key]`` against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import main_graph, run_ops, run_replicas, tensor

SHAPE = (4, 5, 3)
BOUNDS = st.none() | st.integers(-7, 7)


def kinds(graph: popxl.Graph) -> list[str]:
    """Kinds of the graph's ops after the source tensor's."""
    return [op.kind for op in graph._record.ops[1:]]


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.float32)


@st.composite
def range_keys(draw: st.DrawFn) -> Any:
    """Ints and slices of axes of SHAPE, alone or in a tuple; no empty ranges."""
    parts = []
    for size in SHAPE[: draw(st.integers(1, 3))]:
        if draw(st.booleans()):
            parts.append(draw(st.integers(-size, size - 1)))
            continue
        step = draw(st.sampled_from([None, 1, -1, 2, -2, 3]))
        part = slice(draw(BOUNDS), draw(BOUNDS), step)
        parts.append(part if len(range(*part.indices(size))) else slice(None, None, step))
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


@settings(max_examples=25, derandomize=True)
@given(st.lists(range_keys(), min_size=3, max_size=3))
def test_ranges(keys: list[Any]):
    x = np.stack([numbered(SHAPE), -numbered(SHAPE)])
    one = run_ops(lambda t: [t[key] for key in keys], x[0])
    two = run_replicas(lambda t: [t[key] for key in keys], x)
    for key, found, both in zip(keys, one, two, strict=True):
        np.testing.assert_array_equal(found, x[0][key], strict=True)
        np.testing.assert_array_equal(both, np.stack([x[0][key], x[1][key]]), strict=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_last_element(size: int):
    x = numbered((size, 2))
    last, last_row = run_ops(lambda t: [t[-1], t[-1:]], x)
    np.testing.assert_array_equal(last, x[-1])
    np.testing.assert_array_equal(last_row, x[-1:])


def test_ops_of_ranges():
    with main_graph() as graph:
        t = tensor(SHAPE)
        t[1]
        assert kinds(graph) == ["Slice", "Reshape"]
        assert graph._record.ops[-1].outputs[0].name == "slice_out_reshaped"
        t[:]
        assert kinds(graph)[2:] == ["Slice"]
        t[1:, ::2]
        assert kinds(graph)[3:] == ["Slice", "Subsample"]
        assert t[True, 0].shape == (3,)


def test_a_range_is_a_copy():
    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        first = t[0]
        ops.add_(first, popxl.constant(1.0))
        return [t]

    x = numbered((2, 3))
    np.testing.assert_array_equal(run_ops(build, x)[0], x)


def test_positions_beyond_the_axis():
    with main_graph():
        t = tensor(SHAPE)
        for key in (4, -5, (0, 5), (0, 0, -4)):
            with pytest.raises(ValueError, match="squeeze"):
                t[key]
        with pytest.raises(popart.popart_exception, match="out of range"):
            t[0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_int_tensors_gather_rows(shape: tuple[int, ...], rng: Generator):
    x, rows = numbered(SHAPE), rng.integers(0, 4, size=shape).astype(np.int32)
    (found,) = run_ops(lambda t, i: t[i], x, np.asarray(rows))
    np.testing.assert_array_equal(found, x[rows], strict=True)


@pytest.mark.parametrize("key", [[2, 0], [[1], [3]], np.array([3, 3]), (np.int64(1), 0)], ids=str)
def test_arrays_and_lists_gather_rows(key: Any):
    x = numbered(SHAPE)
    (found,) = run_ops(lambda t: t[key], x)
    np.testing.assert_array_equal(found, x[np.asarray(key)], strict=True)


@pytest.mark.parametrize("shape", [SHAPE, (3,), (5, 1), (2, 4, 5, 3)])
def test_bool_tensors_zero_what_they_do_not_choose(shape: tuple[int, ...], rng: Generator):
    x, mask = numbered(SHAPE) + 1, rng.integers(0, 2, size=shape).astype(np.bool_)
    by_tensor, by_array = run_ops(lambda t, m: [t[m], t[mask]], x, mask)
    np.testing.assert_array_equal(by_tensor, np.where(mask, x, 0))
    np.testing.assert_array_equal(by_array, np.where(mask, x, 0))


@pytest.mark.parametrize("key", [True, "a", None, ..., 1.0, np.int64(1)], ids=repr)
def test_keys_of_other_types(key: Any):
    with main_graph(), pytest.raises(TypeError, match="Only integers, slices"):
        tensor(SHAPE)[key]


def test_float_arrays_are_no_keys():
    with main_graph():
        t = tensor(SHAPE)
        with pytest.raises(TypeError, match="Only integers, slices"):
            t[[0.5, 1.0]]
        with pytest.raises(TypeError, match="Only integers, slices"):
            t[tensor((2,))]


@pytest.mark.parametrize("key", [(..., 0), (None,), (0, [1, 2])], ids=str)
def test_mixed_tuples_are_no_keys(key: Any):
    with main_graph(), pytest.raises((TypeError, ValueError)):
        tensor(SHAPE)[key]


def test_a_tensor_within_a_tuple_is_no_key():
    with main_graph():
        t = tensor(SHAPE)
        with pytest.raises((TypeError, ValueError)):
            t[tensor((2,), popxl.int32), 0]
