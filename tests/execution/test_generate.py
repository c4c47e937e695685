"""The token loop, with a session that knows what it must be given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from config.config import MagmaConfig, Precision
from execution.generate import check_lengths, generate
from tests.small_configs import tiny_config
from utils.errors import UserError
from utils.sampling import Sampling

EOS = 510
GREEDY = Sampling(temperature=0)


class FakeSession:
    """Logits of a position depend on all ids up to it and on the picture, as in a causal model."""

    def __init__(self, config: MagmaConfig) -> None:
        self.config = config
        self.inputs = SimpleNamespace(words="words stream", image="image stream")
        self.outputs = SimpleNamespace(logits="logits stream")
        self.runs: list[dict[str, Any]] = []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs.append(dict(inputs))
        config, replicas = self.config, self.config.tensor_parallel
        words = inputs["words stream"].reshape(replicas, config.batch, config.text_tokens)
        image = inputs["image stream"].reshape(replicas, config.batch, -1)
        slots = (config.batch * config.total_tokens, config.transformer.embedding.vocab_size)
        logits = np.stack(
            [
                self.row_logits(words[0, row], image[0, row], position)
                for row in range(config.batch)
                for position in range(config.total_tokens)
            ]
        )
        assert logits.shape == slots
        cut = np.stack(np.split(logits, replicas, axis=1)).astype(np.float16)
        return {"logits stream": cut if replicas > 1 else cut[0]}

    def row_logits(self, ids: np.ndarray, image: np.ndarray, position: int) -> np.ndarray:
        seen = ids[: max(0, position + 1 - self.config.image_tokens)].astype(np.int64)
        key = [int(abs(image[0]) * 1000), position, *(seen % 1000).tolist()]
        vocabulary = self.config.transformer.embedding.vocab_size
        return np.random.default_rng(key).standard_normal(vocabulary)


def _image(config: MagmaConfig, rng: np.random.Generator) -> np.ndarray:
    side = config.visual.image_resolution
    return rng.standard_normal((config.batch, 3, side, side)).astype(np.float32)


def _expected(session: FakeSession, prompt: list[int], image: np.ndarray, count: int) -> list[int]:
    ids = list(prompt)
    pixels = image.reshape(-1)
    for _ in range(count):
        position = session.config.image_tokens + len(ids) - 1
        logits = session.row_logits(np.array(ids), pixels, position).astype(np.float16)
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("prompt", [[], [3], [5, 17, 400]])
def test_reads_the_row_of_the_last_token(
    tp: int, prompt: list[int], rng: np.random.Generator
) -> None:
    config = tiny_config(tp)
    session, image = FakeSession(config), _image(config, rng)
    result = generate(session, config, image, [prompt], GREEDY, 4, EOS)[0]
    assert result.prompt_ids == prompt
    assert result.generated_ids == _expected(session, prompt, image, 4)
    assert result.logits.shape == (4, 512)
    assert result.logits.dtype == np.float32
    assert result.logits.argmax(axis=-1).tolist() == result.generated_ids


def test_one_picture_needs_no_batch_axis(rng: np.random.Generator) -> None:
    config = tiny_config()
    image = _image(config, rng)
    whole, single = (
        generate(FakeSession(config), config, x, [[1]], GREEDY, 2, EOS)[0].generated_ids
        for x in (image, image[0])
    )
    assert whole == single


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_inputs_of_every_run(tp: int, rng: np.random.Generator) -> None:
    config = tiny_config(tp)
    session, image = FakeSession(config), _image(config, rng)
    result = generate(session, config, image, [[7, 8]], GREEDY, 3, EOS)[0]
    assert len(session.runs) == 3
    for step, inputs in enumerate(session.runs):
        words, pixels = inputs["words stream"], inputs["image stream"]
        assert words.dtype == np.int32
        ids = [7, 8, *result.generated_ids[:step]]
        ids += [EOS] * (config.text_tokens - len(ids))
        rows = config.transformer.embedding_rows_per_shard
        shards = np.array([[i - shard * rows for i in ids] for shard in range(tp)])
        np.testing.assert_array_equal(words, shards if tp > 1 else shards[0])
        assert pixels.shape == ((tp, 1) if tp > 1 else (1,)) + image.shape[1:]
        np.testing.assert_array_equal(pixels, np.broadcast_to(image, pixels.shape))
        if tp > 1:
            assert pixels.strides[0] == 0  # equal rows, known without comparing


def test_image_has_the_precision_of_the_encoder(rng: np.random.Generator) -> None:
    for precision in Precision:
        config = tiny_config()
        config.visual.precision = precision
        session = FakeSession(config)
        generate(session, config, _image(config, rng), [[1]], GREEDY, 1, EOS)
        assert session.runs[0]["image stream"].dtype == np.dtype(precision.value)


def test_rows_of_a_batch_have_lengths_and_ends_of_their_own(rng: np.random.Generator) -> None:
    config = tiny_config(batch=3)
    image = _image(config, rng)
    prompts = [[1, 2, 3], [], [9]]
    alone = []
    for row, prompt in enumerate(prompts):
        single = tiny_config()
        session = FakeSession(single)
        alone.append(
            generate(session, single, image[row], [prompt], GREEDY, 4, EOS)[0].generated_ids
        )
    # The second token of the first row becomes the end of its text.
    eos = alone[0][1]
    assert eos not in alone[1] + alone[2]
    seen: list[tuple[int, int]] = []
    results = generate(
        FakeSession(config), config, image, prompts, GREEDY, 4, eos, lambda *new: seen.append(new)
    )
    assert [r.generated_ids for r in results] == [alone[0][:2], alone[1], alone[2]]
    assert [len(r.logits) for r in results] == [2, 4, 4]
    assert [token for row, token in seen if row == 1] == alone[1]


def test_stops_when_every_row_has_ended(rng: np.random.Generator) -> None:
    config = tiny_config()
    image = _image(config, rng)
    eos = _expected(FakeSession(config), [4], image, 1)[0]
    session = FakeSession(config)
    assert generate(session, config, image, [[4]], GREEDY, 5, eos)[0].generated_ids == [eos]
    assert len(session.runs) == 1


def test_the_seed_decides_the_draws(rng: np.random.Generator) -> None:
    config = tiny_config(positions=40)
    image = _image(config, rng)

    def draw(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, top_p=1.0, seed=seed)
        return generate(FakeSession(config), config, image, [[2]], sampling, 20, EOS)[
            0
        ].generated_ids

    assert draw(11) == draw(11)
    assert draw(11) != draw(12)


def test_a_row_draws_the_same_in_any_batch(rng: np.random.Generator) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=4)
    pair, single = tiny_config(batch=2), tiny_config()
    image = _image(pair, rng)
    first = generate(FakeSession(pair), pair, image, [[2], [3, 4]], sampling, 4, EOS)[0]
    alone = generate(FakeSession(single), single, image[0], [[2]], sampling, 4, EOS)[0]
    assert first.generated_ids == alone.generated_ids


def test_the_last_position_may_be_filled(rng: np.random.Generator) -> None:
    config = tiny_config(positions=6)
    session = FakeSession(config)
    prompt = [1, 2, 3, 4, 5, 6]
    image = _image(config, rng)
    new = generate(session, config, image, [prompt], GREEDY, 1, EOS)[0].generated_ids
    assert new == _expected(session, prompt, image, 1)
    assert len(generate(session, config, image, [[1, 2, 3]], GREEDY, 4, EOS)[0].generated_ids) == 4


@pytest.mark.parametrize(
    ("prompt", "count", "facts"),
    [
        ([1] * 9, 1, ["3 tokens too long", "has 9", "sequence_length is 6"]),
        ([1, 2, 3, 4], 5, ["2 tokens too long", "4 of the prompt", "max_out_tokens 5", "length 6"]),
        ([], 8, ["1 tokens too long"]),
        ([1], 0, ["max_out_tokens is 0"]),
        ([1, 512], 1, ["token id 512", "512 rows"]),
    ],
)
def test_what_does_not_fit_is_refused_before_any_run(
    prompt: list[int], count: int, facts: list[str], rng: np.random.Generator
) -> None:
    config = tiny_config()
    session = FakeSession(config)
    with pytest.raises(UserError) as caught:
        generate(session, config, _image(config, rng), [prompt], GREEDY, count, EOS)
    assert not session.runs
    for fact in facts:
        assert fact in str(caught.value)


def test_wrong_sizes_are_refused(rng: np.random.Generator) -> None:
    config = tiny_config(batch=2)
    with pytest.raises(UserError, match="1 prompts for micro_batch_size 2"):
        check_lengths(config, [[1]], 1)
    image = _image(config, rng)[:, :, :-1]
    with pytest.raises(UserError, match=r"expected pictures of shape \(2, 3, 48, 48\)"):
        generate(FakeSession(config), config, image, [[1], [1]], GREEDY, 1, EOS)
    with pytest.raises(UserError, match="top_p is 2"):
        generate(FakeSession(config), config, image, [[1], [1]], replace(GREEDY, top_p=2), 1, EOS)
