"""Runs of the cached scheme: embeddings in and out, shared prompts, pictures that are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from config.config import MagmaConfig
from execution.cached import RunKind
from execution.prompts import Embedded, Picture, Prompt
from execution.runs import Runs, runs_of
from tests.reference.magma import ReferenceMagma
from tests.small_configs import PRECISIONS, TENSOR_PARALLEL, small_config
from tests.small_sessions import (
    SIZES,
    VOCABULARY,
    embeddings_of,
    logits_of,
    open_session,
    pictures,
    recorded_kinds,
)
from tests.tolerances import BY_PRECISION, FLOAT32, assert_close
from utils.errors import UserError

ENCODE, KEEP, EMBED = RunKind.ENCODE, RunKind.KEEP, RunKind.EMBED
PREFILL, SHARED, DECODE = RunKind.PREFILL, RunKind.SHARED_PREFILL, RunKind.DECODE


def words(rng: np.random.Generator, *lengths: int) -> list[list[int]]:
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


def vectors(rng: np.random.Generator, config: MagmaConfig, count: int) -> Embedded:
    h = config.transformer.hidden_size
    return Embedded(rng.normal(size=(count, h)).astype(np.float32))


def check_texts(
    runs: Runs,
    reference: ReferenceMagma,
    images: np.ndarray | None,
    prompts: Sequence[Prompt],
    forced: Sequence[Sequence[int]],
    tolerance: float = FLOAT32,
) -> None:
    """Prompts followed by given tokens have the reference's logits all the way."""
    logits = [runs.start(images, prompts)]
    logits += [runs.step(list(tokens)) for tokens in zip(*forced, strict=True)]
    for row, (prompt, text) in enumerate(zip(prompts, forced, strict=True)):
        expected = logits_of(reference, images, [*prompt, *text])[-len(text) - 1 :].numpy()
        assert_close(np.stack([step[row] for step in logits]), expected, tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_given_embeddings_are_positions_like_others(rng, reference, tensor_parallel, precision):
    """Of lengths that are no multiple of a picture's 4 positions, alone and among others."""
    config = small_config(tensor_parallel, precision, 2, **SIZES)
    images = pictures(rng, 1)
    given = [vectors(rng, config, count) for count in (9, 1, 3)]
    prompts: list[Prompt] = [[given[0]], [5, given[1], Picture(0), 7, given[2], given[1], 8]]
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        tolerance = BY_PRECISION[precision]
        check_texts(runs, reference, images, prompts, words(rng, 4, 4), tolerance)


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
@pytest.mark.parametrize("batch", [1, 2])
def test_embeddings_are_the_references(rng, reference, tensor_parallel, batch):
    config = small_config(tensor_parallel, "float32", batch, **SIZES)
    images = pictures(rng, 2)
    longest: Prompt = [*words(rng, 24)[0], Picture(1)]
    given = vectors(rng, config, 5)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        for prompt in ([Picture(0)], [3], longest, [4, Picture(1), given, 6, Picture(0)]):
            expected = embeddings_of(reference, images, prompt)[0].numpy()
            found = runs.embed(images, prompt)
            assert found.dtype == np.float32
            assert_close(found, expected, FLOAT32)


def test_embeddings_lead_to_the_same_text_as_what_they_are_made_of(rng):
    config = small_config(2, "float32", 1, **SIZES)
    images = pictures(rng, 2)
    prompt = [Picture(1), 5, 6, Picture(0), 7]
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        expected = runs.start(images, [prompt])
        given = Embedded(runs.embed(images, prompt))
        np.testing.assert_array_equal(runs.start(None, [[given]]), expected)


def test_embedding_between_steps_leaves_the_text_alone(rng, reference):
    config = small_config(2, "float32", 2, **SIZES)
    prompts, forced = words(rng, 5, 9), words(rng, 4, 4)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        step = runs.step

        class Interrupted:
            start = staticmethod(runs.start)

            @staticmethod
            def step(tokens):
                runs.embed(pictures(rng, 1), [Picture(0), 1, 2, 3])
                return step(tokens)

        check_texts(Interrupted(), reference, None, prompts, forced)


@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_prompts_that_several_sequences_have_are_read_once(
    rng, reference, tensor_parallel, monkeypatch
):
    """Short and long ones, so that windows begin anywhere, even where the cache is full."""
    config = small_config(tensor_parallel, "float32", 4, **SIZES)
    images = pictures(rng, 2)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        for lengths in ((2, 20), (20, 0), (9, 9), (13, 1)):
            texts = words(rng, *lengths)
            first, second = ([Picture(row), *text] for row, text in enumerate(texts))
            kinds = recorded_kinds(monkeypatch, session)
            prompts = [first, second, second, first]
            check_texts(runs, reference, images, prompts, words(rng, *[4] * 4))
            assert [kind for kind in kinds if kind != ENCODE] == [SHARED] * 2 + [DECODE] * 4


def test_prompts_of_which_few_are_equal_are_read_at_once(rng, reference, monkeypatch):
    config = small_config(2, "float32", 4, **SIZES)
    first, second, third = words(rng, 3, 8, 5)
    with open_session(config, "cached") as session:
        kinds = recorded_kinds(monkeypatch, session)
        prompts = [first, second, third, first]
        check_texts(runs_of(session, config), reference, None, prompts, words(rng, *[2] * 4))
    assert kinds == [PREFILL] + [DECODE] * 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_prompts_than_the_batch_has_room_for(rng, reference, count):
    config = small_config(2, "float32", 4, **SIZES)
    images = pictures(rng, count)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        for _ in range(2):
            prompts = [[Picture(n), *text] for n, text in enumerate(words(rng, *range(count)))]
            check_texts(runs, reference, images, prompts, words(rng, *[5] * count))


def test_a_picture_is_encoded_once_as_long_as_there_is_room(rng, reference, monkeypatch):
    config = small_config(2, "float32", 1, **SIZES)  # room for 7 pictures
    images = pictures(rng, 9)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        kinds = recorded_kinds(monkeypatch, session)

        def encoded(*numbers: int) -> int:
            kinds.clear()
            # Other arrays of equal content, at other places.
            shown = images[list(numbers)].copy()
            prompt: Prompt = [*(Picture(place) for place in range(len(numbers))), 1]
            check_texts(runs, reference, shown, [prompt], words(rng, 2))
            return kinds.count(ENCODE)

        assert encoded(0) == 1
        assert encoded(0, 1, 0) == 1
        assert encoded(2, 3, 4, 5, 6) == 5
        assert encoded(1, 0) == 0
        assert encoded(7) == 1  # takes the place of 2, which nobody wanted for longest
        assert encoded(0, 1, 3) == 0
        assert encoded(2) == 1


def test_given_embeddings_take_the_place_of_pictures_and_back(rng, reference, monkeypatch):
    config = small_config(2, "float32", 1, **SIZES)
    images = pictures(rng, 6)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        shown: Prompt = [Picture(n) for n in range(6)]
        for prompt in (shown, [vectors(rng, config, 26)], shown, [vectors(rng, config, 28)]):
            check_texts(runs, reference, images, [prompt], words(rng, 0))


def test_a_prompt_whose_picture_gave_way_is_read_again(rng, reference):
    """What the cache holds is known by its rows, which may hold another picture by now."""
    config = small_config(2, "float32", 1, **SIZES)  # room for 7 pictures
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        for _ in range(2):
            images = pictures(rng, 1)
            (found,) = runs.score(images, [[Picture(0), 3]], [[5, 6]])
            logits = logits_of(reference, images, [Picture(0), 3, 5])[-2:].log_softmax(-1)
            assert_close(found, logits.numpy()[[0, 1], [5, 6]], FLOAT32)
            runs.embed(pictures(rng, 6), [Picture(n) for n in range(6)])


def test_what_cannot_go_on_says_so(rng):
    config = small_config(1, "float32", 2, **SIZES)
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        with pytest.raises(UserError, match="2 tokens, but 0 sequences have been started"):
            runs.step([1, 2])
        runs.start(None, [[1], [2]])
        with pytest.raises(UserError, match="1 tokens, but 2 sequences"):
            runs.step([1])
        runs.score(None, [[1]], [[2]])
        with pytest.raises(UserError, match="nothing else may be run in between"):
            runs.step([1, 2])
        runs.start(pictures(rng, 1), [[Picture(0), *[5] * 24], [1]])
        with pytest.raises(UserError, match="no position is left of 28"):
            runs.step([1, 2])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([Embedded(np.zeros((3, 63), np.float32))], r"shape \(3, 63\); expected \(number, 64\)"),
        ([Embedded(np.zeros((0, 64), np.float32))], r"shape \(0, 64\); expected \(number, 64\)"),
        ([Embedded(np.full((1, 64), np.nan, np.float32))], "embeddings that are not finite"),
        ([Embedded(np.zeros((29, 64), np.float32))], "1 positions too long: 29 embeddings do not"),
        ([*[Picture(0)] * 8], "4 positions too long: 8 pictures do not fit 28"),
        (
            [Embedded(np.zeros((5, 64), np.float32)), Picture(0), *[1] * 20],
            "1 tokens too long: it has 20, the room beside 1 pictures and 5 embeddings is 19",
        ),
        ([Picture(1)], "names picture 1, but there are 1"),
        ([], "prompt 0 is empty"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_any_run(rng, monkeypatch, prompt, message):
    config = small_config(1, "float32", 1, **SIZES)
    with open_session(config, "cached") as session:
        monkeypatch.setattr(session, "run", None)
        runs = runs_of(session, config)
        for call in (
            lambda: runs.start(pictures(rng, 1), [prompt]),
            lambda: runs.embed(pictures(rng, 1), prompt),
            lambda: runs.score(pictures(rng, 1), [prompt], [[1]]),
        ):
            with pytest.raises(UserError, match=message):
                call()
        for many in ([], [[1], [2]]):
            with pytest.raises(UserError, match=r"no prompts|2 prompts for micro_batch_size 1"):
                runs.start(None, many)
