"""Log-probabilities of given continuations against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from execution.cached import RunKind
from execution.prompts import Picture, Prompt
from execution.runs import runs_of
from execution.score import score
from tests.reference.magma import ReferenceMagma
from tests.small_configs import PRECISIONS, TENSOR_PARALLEL, small_config
from tests.small_sessions import (
    SIZES,
    VOCABULARY,
    logits_of,
    open_session,
    pictures,
    recorded_kinds,
    reference_model,
)
from tests.tolerances import BY_PRECISION, FLOAT32, assert_close
from utils.errors import UserError


def expected_scores(
    reference: ReferenceMagma,
    images: np.ndarray | None,
    prompt: Prompt,
    continuation: Sequence[int],
) -> np.ndarray:
    logits = logits_of(reference, images, [*prompt, *continuation[:-1]])[-len(continuation) :]
    rows = np.arange(len(continuation))
    return logits.log_softmax(-1).numpy()[rows, list(continuation)]


def words(rng: np.random.Generator, *lengths: int) -> list[list[int]]:
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_scores_are_the_references(rng, reference, tensor_parallel, precision):
    """Prompts and continuations of many lengths, more pairs than the batch has rows."""
    config = small_config(tensor_parallel, precision, 2, **SIZES)
    images = pictures(rng, 5)
    prompts = words(rng, 0, 7, 2, 12, 19)
    continuations = words(rng, 9, 1, 20, 4, 6)
    with open_session(config, "cached") as session:
        scores = score(session, config, images, prompts, continuations)
    assert [len(found) for found in scores] == [9, 1, 20, 4, 6]
    expected = [
        expected_scores(reference, images, [Picture(row), *prompt], continuation)
        for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True))
    ]
    assert_close(np.concatenate(scores), np.concatenate(expected), BY_PRECISION[precision])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_candidates_share_their_prompt(rng, reference, batch, monkeypatch):
    config = small_config(2, "float32", batch, **SIZES)
    images = pictures(rng, 2)
    prompts: list[Prompt] = [[Picture(1), *words(rng, 6)[0], Picture(0), 5]] * 7
    continuations = words(rng, 1, 3, 2, 4, 1, 2, 1)
    with open_session(config, "cached") as session:
        kinds = recorded_kinds(monkeypatch, session)
        scores = score(session, config, images, prompts, continuations)
    prefill = RunKind.SHARED_PREFILL if batch > 1 else RunKind.PREFILL
    runs = [RunKind.ENCODE] * 2 + [prefill] + [RunKind.SCORE] * -(-7 // batch)
    assert kinds == runs
    expected = [expected_scores(reference, images, prompts[0], text) for text in continuations]
    assert_close(np.concatenate(scores), np.concatenate(expected), FLOAT32)


def test_candidates_of_several_prompts_are_put_together(rng, reference, monkeypatch):
    config = small_config(2, "float32", 4, **SIZES)
    first, second = words(rng, 5, 17)
    prompts = [first, second, first, second]
    continuations = words(rng, 2, 3, 3, 2)
    with open_session(config, "cached") as session:
        kinds = recorded_kinds(monkeypatch, session)
        scores = score(session, config, None, prompts, continuations)
    assert kinds == [RunKind.SHARED_PREFILL] * 2 + [RunKind.SCORE]
    expected = [
        expected_scores(reference, None, *pair) for pair in zip(prompts, continuations, strict=True)
    ]
    assert_close(np.concatenate(scores), np.concatenate(expected), FLOAT32)


def test_long_texts_are_scored_piece_by_piece(rng, tmp_path, monkeypatch):
    """Behind a prompt of one token, and up to the cache's last slot."""
    sizes = {**SIZES, "text_tokens": 150}
    reference = reference_model(tmp_path, **sizes)
    config = small_config(2, "float32", 2, **sizes)
    texts = words(rng, 149, 100, 33)
    image = pictures(rng, 1)
    prompts: list[Prompt] = [[1], [2, 3], [*words(rng, 117)[0], Picture(0)]]
    with open_session(config, "cached") as session:
        kinds = recorded_kinds(monkeypatch, session)
        scores = score(session, config, image, prompts, texts)
    assert kinds.count(RunKind.SCORE) == 4
    for prompt, text, found in zip(prompts, texts, scores, strict=True):
        assert_close(found, expected_scores(reference, image, prompt, text), FLOAT32)


def test_pairs_that_do_not_fit_side_by_side_are_scored_one_by_one(rng, reference):
    """Aligned at the ends of their prompts, they would need more slots than there are."""
    config = small_config(2, "float32", 2, **SIZES)
    images = pictures(rng, 2)
    prompts, texts = words(rng, 23, 1), words(rng, 2, 24)
    with open_session(config, "cached") as session:
        scores = score(session, config, images, prompts, texts)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        expected = expected_scores(reference, images, [Picture(row), *prompt], text)
        assert_close(scores[row], expected, FLOAT32)


def test_a_vocabulary_as_large_as_the_shards_can_be_scored(rng):
    """Probabilities of all ids behind one prompt add up to one."""
    config = small_config(4, "float32", 4, **SIZES)
    candidates = [[token] for token in range(VOCABULARY)]
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        logits = runs.start(None, [[3, 4, 5]])[0].astype(np.float64)
        scores = score(session, config, None, [[3, 4, 5]] * VOCABULARY, candidates)
    expected = logits - np.log(np.exp(logits).sum())
    assert_close(np.concatenate(scores), expected[:VOCABULARY], FLOAT32)


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([], [], "there are no prompts"),
        ([[1], [2]], [[1]], "2 prompts, but 1 continuations"),
        ([[1], [2]], [[1], []], "continuation 1 is empty"),
        ([[1], []], [[1], [1]], "prompt 1 is empty"),
        ([[1], [2]], [[1], [106]], "continuation 1 has token id 106"),
        ([[1], [-1]], [[1], [1]], "prompt 1 has token id -1"),
        (
            [[1], [2] * 20],
            [[1], [3] * 6],
            "prompt 1 and new tokens are 1 tokens too long: 20 of the prompt and 6 of "
            "continuation 1 do not fit transformer.sequence_length 24",
        ),
        ([[1], [Picture(0)]], [[1], [1]], "prompt 1 names picture 0, but there are 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_run(
    monkeypatch, prompts, continuations, message
):
    config = small_config(2, "float32", 1, **SIZES)
    with open_session(config, "cached") as session:
        monkeypatch.setattr(session, "run", None)
        with pytest.raises(UserError, match=message):
            score(session, config, None, prompts, continuations)


def test_pictures_must_be_one_for_each_prompt_or_named(rng):
    config = small_config(1, "float32", 1, **SIZES)
    session = open_session(config, "cached")
    with session, pytest.raises(UserError, match="1 pictures for 2 prompts"):
        score(session, config, pictures(rng, 1), [[1], [2]], [[1], [2]])
