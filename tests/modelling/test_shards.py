"""Cutting weights: each shard is what its replica multiplies by, and nothing big is copied."""

from __future__ import annotations

import numpy as np
import pytest

from modelling.shards import (
    column_shards,
    frozen,
    prefixed,
    row_shards,
    take,
    vector_shards,
    vocabulary_shards,
)
from tests.tolerances import REFERENCE_FLOAT64, assert_close
from utils.errors import UserError

SHARDS = (1, 2, 4)


def stacked(shards: np.ndarray, r: int) -> np.ndarray:
    """With the leading axis that one shard goes without."""
    return shards[None] if r == 1 else shards


@pytest.mark.parametrize("r", SHARDS)
def test_columns_of_all_shards_are_the_outputs_of_the_linear(r: int, rng: np.random.Generator):
    weight, x = rng.normal(size=(24, 10)), rng.normal(size=(3, 10))
    parts = [x @ shard for shard in stacked(column_shards(weight, r), r)]
    assert parts[0].shape == (3, 24 // r)
    assert_close(np.concatenate(parts, axis=1), x @ weight.T, REFERENCE_FLOAT64)


@pytest.mark.parametrize("r", SHARDS)
def test_results_of_row_shards_add_up_to_the_linear(r: int, rng: np.random.Generator):
    weight, x = rng.normal(size=(10, 24)), rng.normal(size=(3, 24))
    parts = np.split(x, r, axis=1)
    shards = stacked(row_shards(weight, r), r)
    total = sum(part @ shard for part, shard in zip(parts, shards, strict=True))
    assert_close(total, x @ weight.T, REFERENCE_FLOAT64)


@pytest.mark.parametrize("r", SHARDS)
def test_vectors_are_cut_like_columns(r: int, rng: np.random.Generator):
    bias = rng.normal(size=24)
    shards = stacked(vector_shards(bias, r), r)
    np.testing.assert_array_equal(np.concatenate(list(shards)), bias)
    assert shards.shape == (r, 24 // r)


@pytest.mark.parametrize("r", SHARDS)
def test_filling_of_the_vocabulary_comes_after_its_last_word(r: int, rng: np.random.Generator):
    table = rng.normal(size=(50, 6))
    rows = 64 // r
    whole = stacked(vocabulary_shards(table, rows, r), r).reshape(64, 6)
    np.testing.assert_array_equal(whole[:50], table)
    assert not whole[50:].any()


@pytest.mark.parametrize("r", SHARDS)
def test_cuts_are_views(r: int, rng: np.random.Generator):
    matrix, table = rng.normal(size=(24, 24)), rng.normal(size=(64, 6))
    for shards in (column_shards(matrix, r), row_shards(matrix, r)):
        assert np.shares_memory(shards, matrix)
    assert np.shares_memory(vocabulary_shards(table, 64 // r, r), table)


def test_take_copies_only_to_convert():
    stored = np.ones((2, 3), np.float16)
    assert take({"w": stored}, "w", (2, 3), np.dtype("float16")) is stored
    converted = take({"w": stored}, "w", (2, 3), np.dtype("float32"))
    assert converted.dtype == np.float32
    # An engine may keep it as it is only if nobody can write to it.
    assert not converted.flags.writeable


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"tensor a\.w is missing .*expected shape \(2, 3\)"),
        ({"a.w": np.ones((3, 2))}, r"tensor a\.w has shape \(3, 2\), .* needs \(2, 3\)"),
    ],
)
def test_take_says_what_is_wrong_with_a_tensor(tensors: dict, message: str):
    with pytest.raises(UserError, match=message):
        take(tensors, "a.w", (2, 3), np.dtype("float32"))


def test_a_frozen_array_cannot_be_changed_through_what_it_views():
    whole = np.zeros(6)
    view = frozen(whole.reshape(2, 3)[1:])
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        whole[4] = 1


def test_prefixes_keep_order_and_arrays():
    arrays = {"b": np.zeros(1), "a": np.ones(1)}
    result = prefixed("x.y", arrays)
    assert list(result) == ["x.y.b", "x.y.a"]
    assert result["x.y.a"] is arrays["a"]
