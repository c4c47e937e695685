"""Cutting, repeating and padding of host arrays."""

from __future__ import annotations

import numpy as np
import pytest
from popxl_addons import array_munging as am


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_shard_and_unshard(axis: int, rng: np.random.Generator):
    x = rng.normal(size=(4, 6, 8))
    shards = am.shard(x, 2, axis)
    expected = [2 if a == axis % 3 else 1 for a in range(3)]
    assert shards.shape == (2, *(n // e for n, e in zip(x.shape, expected, strict=True)))
    np.testing.assert_array_equal(shards[1], np.split(x, 2, axis)[1])
    np.testing.assert_array_equal(am.unshard(shards, axis), x)


def test_shard_needs_equal_parts():
    with pytest.raises(ValueError, match="equal division"):
        am.shard(np.zeros((3, 4)), 2, 0)


def test_unshard_arrays(rng: np.random.Generator):
    x = rng.normal(size=(4, 6))
    parts = [part[None] for part in np.split(x, 3, axis=1)]
    np.testing.assert_array_equal(am.unshard_arrays(parts, 1), x)
    with pytest.raises(ValueError, match=r"ranks \[3, 2\]"):
        am.unshard_arrays([parts[0], parts[0][0]], 0)


def test_repeat_and_repeat_axis(rng: np.random.Generator):
    x = rng.normal(size=(2, 3))
    assert am.repeat(x, 4).shape == (4, 2, 3)
    assert am.repeat(x, 4, axis=2).shape == (2, 3, 4)
    np.testing.assert_array_equal(am.repeat(x, 4, axis=1)[:, 3], x)
    np.testing.assert_array_equal(am.repeat_axis(x, 2, axis=1), np.tile(x, (1, 2)))


def test_two_axes(rng: np.random.Generator):
    x = rng.normal(size=(4, 6, 5))
    grid = am.split2D(x, 2, 3, 0, 1)
    assert (len(grid), len(grid[0])) == (2, 3)
    shards = am.shard2D(x, 2, 3, 0, 1)
    np.testing.assert_array_equal(shards[4], x[2:, 2:4])
    np.testing.assert_array_equal(am.unshard2D(shards, 2, 3, 0, 1), x)
    with pytest.raises(AssertionError):
        am.unshard2D(shards, 2, 2, 0, 1)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("contiguous", [0, 1, 0, 1, 0, 1]), ("strided", [0, 0, 0, 1, 1, 1])],
)
def test_repeat_shard(order: str, expected: list[int], rng: np.random.Generator):
    x = rng.normal(size=(2, 5))
    repeated = am.repeat_shard(x, 3, 2, 0, order)  # type: ignore[arg-type]
    np.testing.assert_array_equal(repeated, x[expected][:, None])
    with pytest.raises(ValueError, match="'contiguous' or 'strided'"):
        am.repeat_shard(x, 3, 2, 0, "other")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "tp", "rf", "shape"),
    [
        (4, 2, 4, (2, 4, 3)),
        (2, 2, 4, (4, 3)),
        (4, 1, 1, (4, 3)),
        (1, 1, 1, (3,)),
        (6, 2, 2, (6, 2, 3)),
    ],
)
def test_tensor_parallel_input(n: int, tp: int, rf: int, shape: tuple, rng: np.random.Generator):
    x = rng.normal(size=(n, 3))
    out = am.tensor_parallel_input(x, tp, rf)
    assert out.shape == shape
    # tp consecutive replicas have the same sample, the next tp the next one.
    np.testing.assert_array_equal(out.reshape(-1, 3), np.repeat(x, tp, axis=0))


def test_tensor_parallel_input_changes_the_data_of_each_rank():
    offsets = np.array([0, 10])
    out = am.tensor_parallel_input(
        np.arange(4).reshape(2, 2), 2, 2, lambda data, rank: data - offsets[rank]
    )
    np.testing.assert_array_equal(out[:, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(out[:, 1], [[-10, -9], [-8, -7]])


def test_tensor_parallel_input_never_squeezes_data():
    assert am.tensor_parallel_input(np.zeros((1, 1, 1)), 2, 2).shape == (2, 1, 1)


@pytest.mark.parametrize(("n", "tp", "rf"), [(1, 4, 2), (1, 2, 3), (1, 1, 2), (3, 2, 4)])
def test_tensor_parallel_input_rejects_what_does_not_divide(n: int, tp: int, rf: int):
    with pytest.raises(ValueError, match=r"tensor_parallel_input|reshape"):
        am.tensor_parallel_input(np.zeros((n, 2)), tp, rf)


def test_tensor_parallel_output_is_the_inverse(rng: np.random.Generator):
    x = rng.normal(size=(8, 3))
    out = am.tensor_parallel_input(x, 2, 4)
    np.testing.assert_array_equal(am.tensor_parallel_output(out, 4, 2, 4, (3,)), x)
    both = am.tensor_parallel_output(out, 4, 2, 4, (3,), tp_identical=False)
    np.testing.assert_array_equal(both, np.repeat(x[:, None], 2, axis=1))
    short = am.tensor_parallel_output(out, 4, 2, 4, (3,), true_num_host_transfers=3)
    np.testing.assert_array_equal(short, x[:6])


def test_pad_axis(rng: np.random.Generator):
    x = rng.normal(size=(2, 3))
    padded = am.pad_axis(x, 5, -1, value=7)
    np.testing.assert_array_equal(padded[:, :3], x)
    assert (padded[:, 3:] == 7).all()
    with pytest.raises(AssertionError, match="more than 2"):
        am.pad_axis(x, 2, 1)


def test_squeeze_safe():
    x = np.zeros((1, 2, 1, 3))
    assert am.squeeze_safe(x).shape == (2, 3)
    assert am.squeeze_safe(x, 0).shape == (2, 1, 3)
    assert am.squeeze_safe(x, (0, 1, -2)).shape == (2, 3)
    assert am.squeeze_safe(x, 1).shape == x.shape


def test_handle_negative_axis():
    x = np.zeros((1, 2, 3))
    assert [am.handle_negative_axis(x, a) for a in (-3, -1, 0, 2)] == [0, 2, 0, 2]
    for array, axis in ((x, 3), (x, -4), (np.float32(1), 0)):
        with pytest.raises(IndexError, match="out of range"):
            am.handle_negative_axis(array, axis)
