"""What goes into runs and what comes out, and whose the runs of a session are."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from config.config import GPTJEmbeddingConfig
from execution.cached import RunKind
from execution.prompts import Picture
from execution.runs import next_logits, on_replicas, runs_of, targets_host, words_host
from tests.small_configs import small_config, tiny_config
from tests.small_sessions import SIZES, open_session, pictures, recorded_kinds
from utils.errors import UserError


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_next_logits_joins_the_slices(tp: int, rng: np.random.Generator) -> None:
    config = tiny_config(tp, batch=2)
    whole = rng.standard_normal((2, config.total_tokens, 512)).astype(np.float16)
    cut = np.stack(np.split(whole.reshape(-1, 512), tp, axis=1))
    for row in range(2):
        for length in range(config.text_tokens + 1):
            joined = next_logits(config, cut if tp > 1 else cut[0], row, length)
            expected = whole[row, config.image_tokens + length - 1].astype(np.float32)
            np.testing.assert_array_equal(joined, expected)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("rows", [100, 128])
def test_words_find_their_row_once_or_a_row_of_zeros(
    tp: int, rows: int, rng: np.random.Generator
) -> None:
    config = tiny_config(tp)
    config.transformer.embedding = GPTJEmbeddingConfig(vocab_size=256, real_vocab_size=rows)
    per_shard = config.transformer.embedding_rows_per_shard
    table = np.zeros((tp * per_shard, 5))
    table[:rows] = rng.standard_normal((rows, 5))
    ids = rng.integers(0, rows, (1, config.text_tokens))
    ids[0, 2] = 255
    if tp == 1 and rows == per_shard:
        with pytest.raises(UserError, match="token id 255 has no row"):
            words_host(config, ids)
        return
    words = words_host(config, ids).reshape(tp, -1)
    found = np.zeros((config.text_tokens, 5))
    for shard, shard_words in zip(np.split(table, tp), words, strict=True):
        inside = (shard_words >= 0) & (shard_words < per_shard)
        found[inside] += shard[shard_words[inside]]
    expected = np.where(ids[0, :, None] < rows, table[np.minimum(ids[0], rows - 1)], 0)
    np.testing.assert_array_equal(found, expected)


def test_offsets_are_those_of_the_embedding_layer() -> None:
    layers = pytest.importorskip("popxl_addons.layers")
    for tp in (1, 2, 4):
        config = tiny_config(tp)
        for rows in (512, 100, 50258):
            config.transformer.embedding = GPTJEmbeddingConfig(51200, rows)
            words = words_host(config, np.zeros((1, 1), np.int64)).reshape(tp, 1)
            offsets = layers.Embedding.get_offsets(rows, tp)
            np.testing.assert_array_equal(-words[:, 0], offsets)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_targets_are_columns_of_one_shard(tp: int, rng: np.random.Generator) -> None:
    config = tiny_config(tp)
    columns = config.transformer.embedding.vocab_size // tp
    ids = rng.integers(0, columns * tp, (2, 3))
    shards = targets_host(config, ids).reshape(tp, 2, 3)
    inside = (shards >= 0) & (shards < columns)
    assert (inside.sum(axis=0) == 1).all()
    shard = inside.argmax(axis=0)
    np.testing.assert_array_equal(
        shard * columns + np.take_along_axis(shards, shard[None], 0), ids[None]
    )


def test_replicas_share_the_rows_of_one_array() -> None:
    array = np.arange(3)
    assert on_replicas(tiny_config(1), array) is array
    assert on_replicas(tiny_config(4), array).strides == (0, array.strides[0])


def test_everyone_gets_the_same_runs_as_long_as_there_is_the_session() -> None:
    config = small_config(1, "float32", 1, **SIZES)
    one, other = (open_session(config, "cached") for _ in range(2))
    runs = weakref.ref(runs_of(one, config))
    assert runs_of(one, config, pad_id=3) is runs()
    assert runs_of(other, config) is not runs()
    del one
    gc.collect()
    assert runs() is None


def test_who_comes_later_finds_the_pictures_of_earlier_calls(rng, monkeypatch) -> None:
    config = small_config(1, "float32", 1, **SIZES)
    images = pictures(rng, 1)
    with open_session(config, "cached") as session:
        first = runs_of(session, config).start(images, [[Picture(0), 1]])
        gc.collect()
        kinds = recorded_kinds(monkeypatch, session)
        again = runs_of(session, config).start(images.copy(), [[Picture(0), 1]])
    assert kinds == [RunKind.PREFILL]
    np.testing.assert_array_equal(again, first)
