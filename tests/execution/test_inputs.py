"""Forms of pictures and prompts: generators too, and one line for what is neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from execution.inputs import pieces_of, pieces_of_one, prepare
from utils.errors import UserError
from utils.images import ImageInput
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer


def test_lists_tuples_and_generators_are_the_same():
    a, b = Path("a.png"), Path("b.png")
    expected = [[a, "x"], [b, "y"]]
    assert pieces_of([a, b], ["x", "y"]) == expected
    assert pieces_of((a, b), ("x", "y")) == expected
    assert pieces_of((p for p in (a, b)), (t for t in "xy")) == expected
    # A list that holds a picture is one prompt.
    assert pieces_of(None, (piece for piece in ("x", a, "y"))) == [["x", a, "y"]]


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (None, None, "prompts are NoneType; expected one or a list"),
        (None, 5, "prompts are int"),
        (None, b"text", "prompts are bytes"),
        (None, {"a": 1}, "prompts are dict"),
        (5, "A", "pictures are int"),
        (b"\xff\xd8", "A", "pictures are bytes"),
        (None, [["A", ["B"]]], "a prompt holds list"),
    ],
)
def test_what_is_no_prompt_is_refused(images, prompts, message):
    with pytest.raises(UserError, match=message):
        pieces_of(images, prompts)


def test_pictures_that_pillow_cannot_read_any_more(tmp_path):
    """Pillow reads the pixels of an opened file when they are wanted."""
    Image.new("RGB", (64, 64), (9, 8, 7)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    with Image.open(tmp_path / "cut.png") as cut:
        for picture in (cut, closed):
            with pytest.raises(UserError, match="picture of prompt 0: the picture cannot be read"):
                prepare([[picture]], tokenizer, 48)


def test_one_prompt_is_a_piece_or_pieces_in_their_order():
    a, image = Path("a.png"), ImageInput("b.png")
    assert pieces_of_one("text") == ["text"]
    assert pieces_of_one(image) == [image]
    assert pieces_of_one(iter(["x", a, image])) == ["x", a, image]
    for wrong, message in ((None, "NoneType"), (5, "int"), ([5], "holds int"), (b"x", "bytes")):
        with pytest.raises(UserError, match=message):
            pieces_of_one(wrong)


@pytest.mark.parametrize("empty", [np.zeros((0, 8, 3), np.uint8), Image.new("RGB", (0, 5))])
def test_pictures_without_pixels_are_bad_pictures(empty):
    pieces: list[list[Any]] = [["A"], [empty, "B"], [ImageInput("nowhere.png")]]
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    with pytest.raises(UserError, match="picture of prompt 1: the picture has no pixels"):
        prepare(pieces, tokenizer, 48)
    prepared = prepare(pieces, tokenizer, 48, skip_bad=True)
    assert sorted(prepared.errors) == [1, 2]
    assert [prompt is None for prompt in prepared.prompts] == [False, True, True]
