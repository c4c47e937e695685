"""Answers while they are made, from runs that say what they are told to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from execution.answers import Answer, Piece, Stream
from execution.inputs import Prepared
from execution.options import resolve
from execution.prompts import Picture, Prompt
from execution.sessions import OpenSession
from utils.errors import UserError
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer

VOCABULARY = 512
TOKENIZER = load_tokenizer(SMALL_TOKENIZER)
EOS = TOKENIZER.eos_token_id


class Script:
    """Runs that favour the ids of a text, chosen by the first id of each prompt."""

    def __init__(self, texts: dict[int, list[int]]) -> None:
        self.texts = texts
        self.starts: list[tuple[int, list[Prompt]]] = []

    def start(self, images: np.ndarray | None, prompts: Sequence[Prompt]) -> np.ndarray:
        self.starts.append((0 if images is None else len(images), list(prompts)))
        words = [next(item for item in prompt if isinstance(item, int)) for prompt in prompts]
        self.left = [iter(self.texts[word]) for word in words]
        return self.logits()

    def step(self, _tokens: Sequence[int | None]) -> np.ndarray:
        return self.logits()

    def logits(self) -> np.ndarray:
        logits = np.zeros((len(self.left), VOCABULARY), np.float32)
        for row, ids in enumerate(self.left):
            logits[row, next(ids, EOS)] = 50
        return logits


class Rooms:
    """Sessions with room for so many sequences."""

    def __init__(self, runs: Any, largest: int) -> None:
        self.largest, self.asked = largest, []
        self.opened = OpenSession(None, None, runs)  # type: ignore[arg-type]

    def with_room(self, sequences: int) -> OpenSession:
        self.asked.append(sequences)
        return self.opened


def stream_of(
    rooms: Any, prompts: list[Any], pictures: Any = (), errors: Any = None, **options: Any
) -> Stream:
    settled = resolve({"temperature": 0} | options, TOKENIZER, 0)  # type: ignore[typeddict-item]
    return Stream(rooms, Prepared(prompts, list(pictures), errors or {}), settled, TOKENIZER)


def test_pieces_are_whole_characters_and_join_to_each_text():
    texts = ["né 😀!", "日本 x", "plain"]
    script = Script({n: TOKENIZER.encode(text) for n, text in enumerate(texts)})
    stream = stream_of(Rooms(script, 8), [[0], [1], [2]])
    joined = [""] * 3
    for piece in stream:
        assert isinstance(piece, Piece)
        assert "\ufffd" not in piece
        joined[piece.answer] += piece
        assert stream.answers[piece.answer].text == joined[piece.answer]
    assert joined == texts == [answer.text for answer in stream.answers]
    assert {answer.finish_reason for answer in stream.answers} == {"eos"}


def test_a_character_that_is_cut_off_is_marked_at_the_end_only():
    whole = TOKENIZER.encode("a😀")
    pieces = list(stream_of(Rooms(Script({0: whole[:-1]}), 1), [[0]], max_new_tokens=len(whole)))
    assert "".join(pieces) == "a\ufffd"


def test_more_answers_than_there_is_room_for_are_made_in_turns():
    script = Script({n: TOKENIZER.encode(f"text {n}") for n in range(3)})
    rooms = Rooms(script, 2)
    stream = stream_of(rooms, [[0], [1], [2]], num_return_sequences=2)
    list(stream)
    assert rooms.asked == [2, 2, 2]
    assert [a.text for a in stream.answers] == [f"text {n}" for n in (0, 0, 1, 1, 2, 2)]
    assert [(a.prompt, a.sample) for a in stream.answers] == [
        (prompt, sample) for prompt in range(3) for sample in range(2)
    ]


def test_each_turn_gets_its_own_pictures_numbered_anew():
    pictures = [np.full((1, 3, 2, 2), n, np.float32) for n in range(3)]
    prompts = [[Picture(0), 5], [5], [Picture(2), 5, Picture(0)]]
    script = Script({5: []})
    list(stream_of(Rooms(script, 2), prompts, pictures))
    assert script.starts == [
        (1, [[Picture(0), 5], [5]]),
        (2, [[Picture(0), 5, Picture(1)]]),
    ]


def test_a_prompt_with_an_error_is_passed_over():
    script = Script({0: TOKENIZER.encode("yes"), 2: TOKENIZER.encode("no")})
    rooms = Rooms(script, 8)
    stream = stream_of(rooms, [[0], None, [2]], errors={1: "no picture"})
    list(stream)
    assert [(a.text, a.error) for a in stream.answers] == [
        ("yes", None), ("", "no picture"), ("no", None),
    ]  # fmt: skip
    assert rooms.asked == [2]


def test_draws_depend_on_the_seed_and_the_sample_only():
    """However many are made together, and whatever is beside them."""

    class Flat(Script):
        def logits(self) -> np.ndarray:
            return np.zeros((len(self.left), VOCABULARY), np.float32)

    def ids(largest: int, seed: int) -> list[list[int]]:
        options = {"temperature": 1.0, "top_p": 1.0, "seed": seed, "num_return_sequences": 4}
        options |= {"max_new_tokens": 6, "min_new_tokens": 6}
        stream = stream_of(Rooms(Flat({0: []}), largest), [[0]], **options)
        list(stream)
        return [answer.ids for answer in stream.answers]

    assert ids(1, 7) == ids(3, 7) == ids(8, 7)
    assert len({tuple(line) for line in ids(8, 7) + ids(8, 8)}) == 8


def test_nothing_runs_before_the_first_piece_is_asked_for():
    rooms = Rooms(Script({0: TOKENIZER.encode("a")}), 1)
    stream = stream_of(rooms, [[0]])
    assert rooms.asked == []
    assert next(stream) == "a"


def test_a_stream_that_lost_its_session_says_so():
    rooms = Rooms(Script({0: TOKENIZER.encode("a b c d")}), 1)
    stream = stream_of(rooms, [[0]])
    next(stream)
    rooms.opened.user = object()
    with pytest.raises(UserError, match="used for something else"):
        list(stream)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 23), ({"max_new_tokens": 1}, 128), ({"top_log_probs": 5}, 3),
        ({"output_logits": True}, 1), ({"top_log_probs": 10**9, "max_new_tokens": 1}, 0),
    ],
)  # fmt: skip
def test_more_answers_than_memory_holds_are_refused_before_work(monkeypatch, options, most):
    memory = {"SC_PHYS_PAGES": 21, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", memory.__getitem__)
    prepared = Prepared([[1]], [], {})

    def begun(samples: int) -> Stream:
        settled = resolve({"num_return_sequences": samples} | options, TOKENIZER, seed=0)
        return Stream(Rooms(None, 1), prepared, settled, TOKENIZER)

    if most:
        assert len(begun(most).answers) == most
    with pytest.raises(UserError, match=f"^{most + 1} answers of up to .* ask for fewer"):
        begun(most + 1)


def test_logits_that_were_not_kept_are_named():
    with pytest.raises(UserError, match="output_logits=True"):
        _ = Answer(0).logits
