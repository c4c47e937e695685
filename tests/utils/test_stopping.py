"""Text in pieces against the whole text that the tokenizer decodes; stop strings by search."""

from __future__ import annotations

import numpy as np
import pytest

from utils.errors import UserError
from utils.stopping import Stopping, TextStream, token_ids
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer

TOKENIZER = load_tokenizer(SMALL_TOKENIZER)


def stream(ids: list[int], *stops: str) -> tuple[TextStream, list[str]]:
    """The stream after these ids, and its pieces."""
    text = TextStream(TOKENIZER, stops)
    pieces = []
    for token in ids:
        pieces.append(text.append(token))
        if text.stopped is not None:
            return text, pieces
    return text, [*pieces, text.finish()]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@pytest.mark.parametrize("kind", ["any", "bytes above 127"])
def test_pieces_join_to_the_decoded_text(kind: str, rng: np.random.Generator) -> None:
    high = [n for n in range(510) if "\ufffd" in TOKENIZER.decode([n])]
    for _ in range(200):
        ids = rng.integers(0, 512, 30) if kind == "any" else rng.choice(high, 30)
        text, pieces = stream(ids.tolist())
        assert "".join(pieces) == text.text == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_no_piece_is_half_a_character() -> None:
    written = "naïve 猫 and 🐈‍⬛ in Łódź"
    ids = encode(written)
    assert len(ids) > len(written)  # the small vocabulary has no such letters
    _, pieces = stream(ids)
    assert "".join(pieces) == written
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") > 5


def test_half_a_character_at_the_end_is_marked() -> None:
    ids = encode("a猫")[:-1]
    _, pieces = stream(ids)
    assert "".join(pieces) == "a\ufffd"
    assert pieces[-1] == "\ufffd"


@pytest.mark.parametrize(
    ("written", "stops", "expected", "stopped"),
    [
        ("one two three", ["two"], "one ", "two"),
        ("one two three", ["four"], "one two three", None),
        ("one\nQ: two", ["\nQ:"], "one", "\nQ:"),
        ("ababac", ["abac"], "ab", "abac"),
        ("aab", ["ab", "b"], "a", "ab"),
        ("x猫y", ["猫"], "x", "猫"),
        ("stop", ["stop"], "", "stop"),
        ("sto", ["stop"], "sto", None),
    ],
)
def test_text_ends_before_a_stop_string(
    written: str, stops: list[str], expected: str, stopped: str | None
) -> None:
    text, pieces = stream(encode(written), *stops)
    assert ("".join(pieces), text.text, text.stopped) == (expected, expected, stopped)


def test_stop_strings_across_tokens_are_found_as_by_search(rng: np.random.Generator) -> None:
    """Of texts of two letters, byte by byte: every way that a stop string may lie or nearly lie."""
    letters = [encode(letter)[0] for letter in "ab"]
    for _ in range(500):
        written = "".join(rng.choice(["a", "b"], 12))
        stops = ["".join(rng.choice(["a", "b"], rng.integers(2, 6))) for _ in range(2)]
        text, pieces = stream([letters["ab".index(letter)] for letter in written], *stops)
        ends = [(written.find(s) + len(s), -len(s)) for s in stops if s in written]
        expected = written
        if ends:
            end, negative = min(ends)
            expected = written[: end + negative]
        assert "".join(pieces) == expected, (written, stops)
        assert (text.stopped is not None) == bool(ends)


def test_a_stop_string_too_early_does_not_count() -> None:
    text = TextStream(TOKENIZER, ["a"])
    token = encode("a")[0]
    assert [text.append(token, may_stop=False), text.append(token)] == ["a", ""]
    assert (text.text, text.stopped) == ("a", "a")


def test_special_and_unknown_ids_say_nothing() -> None:
    ids = encode("ab")
    text, _ = stream([ids[0], TOKENIZER.eos_token_id, TOKENIZER.cls_token_id, 9999, *ids[1:]])
    assert text.text == "ab"


def test_stop_tokens_by_id_and_by_text() -> None:
    assert token_ids(TOKENIZER, [7, "\n", " the", "<|endoftext|>"]) == (
        7,
        encode("\n")[0],
        encode(" the")[0],
        TOKENIZER.eos_token_id,
    )


@pytest.mark.parametrize("token", [512, -1, True, "two words", ""])
def test_unknown_stop_tokens_are_named(token: int | str) -> None:
    with pytest.raises(UserError, match="unknown stop token") as caught:
        token_ids(TOKENIZER, [token])
    assert repr(token) in str(caught.value)


@pytest.mark.parametrize(
    ("stopping", "message"),
    [
        (Stopping(0, (1,)), "0 new tokens"),
        (Stopping(3, (1,), 4), "at least 4 .* 0..3"),
        (Stopping(3, (1,), -1), "at least -1"),
        (Stopping(3, (1,), stop_strings=("a", "")), "stop string is empty"),
    ],
)
def test_values_out_of_range_are_named(stopping: Stopping, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stopping.validate()
