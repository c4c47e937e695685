"""What of a prompt fits a model: counted by hand, for every mixture of words and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from execution.prompts import (
    Embedded,
    Picture,
    check_continuations,
    check_length,
    images_host,
    text_of,
    with_pictures,
)
from tests.small_configs import small_config
from utils.errors import UserError

# A picture is 4 positions, a text has 12 of 16.
CONFIG = small_config(image_resolution=64)


def rows(count: int) -> Embedded:
    return Embedded(np.zeros((count, CONFIG.transformer.hidden_size), np.float32))


def room_beside(others: list[Any]) -> int:
    taken = sum(4 if isinstance(item, Picture) else len(item.rows) for item in others)
    return min(12, 16 - taken)


@pytest.mark.parametrize(
    "others",
    [[], [Picture(0)], [Picture(0), Picture(1)], [rows(3)], [rows(9), Picture(0)], [rows(16)]],
    ids=lambda others: str(room_beside(others)),
)
def test_words_and_new_tokens_fill_the_room_and_no_more(others):
    """The last new token needs no position."""
    room = room_beside(others)
    for ids in range(room + 1):
        check_length(CONFIG, [*others, *[1] * ids], room - ids + 1, "new")
        with pytest.raises(UserError, match="1 tokens too long"):
            check_length(CONFIG, [*others, *[1] * ids], room - ids + 2, "new")
    with pytest.raises(UserError, match=f"2 tokens too long: it has {room + 2}, .* is {room}"):
        check_length(CONFIG, [*others, *[1] * (room + 2)], 1, "new")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([Picture(0)] * 5, "4 positions too long: 5 pictures do not fit 16"),
        ([rows(17)], "1 positions too long: 17 embeddings do not fit 16"),
        ([106], "token id 106, the word embedding has 106 rows"),
        ([-1], "token id -1"),
        ([Embedded(np.zeros((2, 3), np.float32))], r"shape \(2, 3\); expected \(number, 64\)"),
        ([Embedded(np.full((1, 64), np.inf, np.float32))], "not finite"),
    ],
)
def test_what_does_not_fit_at_all(prompt, message):
    with pytest.raises(UserError, match=message):
        check_length(CONFIG, prompt, 1, "new")


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([[1]], [], "1 prompts, but 0 continuations"),
        ([[1]], [[]], "continuation 0 is empty"),
        ([[1], [1]], [[1], [106]], "continuation 1 has token id 106"),
        ([[1], [1] * 5], [[1], [1] * 9], "1 tokens too long: 5 of the prompt and 9 of cont"),
    ],
)
def test_continuations_that_do_not_fit(prompts, continuations, message):
    with pytest.raises(UserError, match=message):
        check_continuations(CONFIG, prompts, continuations)


def test_pictures_come_first_where_no_prompt_names_one(rng):
    images = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
    found, prompts = with_pictures(CONFIG, images, [[1], []])
    np.testing.assert_array_equal(found, images)
    assert prompts == [[Picture(0), 1], [Picture(1)]]
    named = [[1, Picture(1)], [2]]
    assert with_pictures(CONFIG, images, named)[1] == named
    assert with_pictures(CONFIG, images[0], [[1]])[1] == [[Picture(0), 1]]
    assert with_pictures(CONFIG, None, [[1]]) == (None, [[1]])
    with pytest.raises(UserError, match="2 pictures for 1 prompts"):
        with_pictures(CONFIG, images, [[1]])


def test_pictures_have_the_encoders_precision_and_size():
    config = small_config(precision="float16", image_resolution=64)
    assert images_host(config, np.zeros((5, 3, 64, 64), np.float32)).dtype == np.float16
    for shape in ((3, 64, 64), (1, 3, 64, 63), (1, 4, 64, 64)):
        with pytest.raises(UserError, match="expected pictures of shape"):
            images_host(config, np.zeros(shape, np.float32))


def test_the_text_of_a_prompt_are_its_ids():
    assert text_of([1, Picture(0), 2, rows(1), 3]) == [1, 2, 3]
