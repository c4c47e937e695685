"""The command line's own work: which prompts are asked, how answers and scores are printed."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from config.parsing import parse_config
from execution.answers import Alternative, Answer, Piece
from execution.command import (
    DEFAULT_PROMPT,
    Printer,
    add_options,
    asked_prompts,
    dump,
    generation_options,
    log_prob_lines,
    score_lines,
)
from execution.magma import Score
from utils.errors import UserError
from utils.images import ImageInput
from utils.stopping import FinishReason


def options(*argv: str) -> Namespace:
    return parse_config(list(argv), "tiny", add_options)[1]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{side}.png" for side in (5, 6, 7)]
    for side, path in enumerate(paths, 5):
        Image.new("RGB", (side, side)).save(path)
    return [str(path) for path in paths]


def form(prompts: list[tuple[str, list[Any]]]) -> list[list[Any]]:
    """The pieces of prompts, pictures by their sides."""
    return [
        [piece.size[0] if isinstance(piece, Image.Image) else piece for piece in pieces]
        for _, pieces in prompts
    ]


@pytest.mark.parametrize(
    ("images", "prompts", "expected"),
    [
        (1, ["a"], [[5, "a"]]),
        (1, ["a", "b"], [[5, "a"], [5, "b"]]),
        (2, ["a"], [[5, "a"], [6, "a"]]),
        (2, ["a", "b"], [[5, "a"], [6, "b"]]),
        (2, ["{image} a {image}", "b"], [[5, " a ", 6], ["b"]]),
        (3, ["x{image}", "{image}{image}y"], [["x", 5], [6, 7, "y"]]),
    ],
)
def test_pictures_go_to_prompts(images, prompts, expected, pictures):
    argv = [word for path in pictures[:images] for word in ("--image", path)]
    argv += [word for text in prompts for word in ("--prompt", text)]
    asked = asked_prompts(options(*argv))
    assert form(asked) == expected
    assert {label for label, _ in asked} == set(prompts)


def test_text_alone_and_the_defaults(pictures):
    assert asked_prompts(options("--no_image", "--prompt", "a")) == [("a", ["a"])]
    ((label, (picture, text)),) = asked_prompts(options())
    assert label == text == DEFAULT_PROMPT
    assert isinstance(picture, Image.Image)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image", "P", "--no_image"], "--no_image and --image exclude each other"),
        (["--image", "nowhere.png"], r"--image 0: nowhere\.png"),
        (["--image", "P", "--image", "nowhere.png"], r"--image 1: nowhere\.png"),
        (["--image", "P", "--image", "P", *["--prompt", "a"] * 3], "2 --image and 3 --prompt"),
        (["--image", "P", "--prompt", "{image}{image}"], "2 times, but there are 1 --image"),
        (["--no_image", "--prompt", "{image}"], "1 times, but there are 0 --image"),
    ],
)
def test_pictures_that_do_not_fit(argv, message, pictures):
    with pytest.raises(UserError, match=message):
        asked_prompts(options(*(pictures[0] if word == "P" else word for word in argv)))


def test_a_bad_picture_is_left_for_later_where_it_may_be_skipped():
    ((_, (picture, _text)),) = asked_prompts(options("--image", "nowhere.png", "--skip_bad"))
    assert isinstance(picture, ImageInput)


def test_options_of_generating():
    found = generation_options(options(), 3, 7)
    assert (found["num_return_sequences"], found["seed"], found["top_log_probs"]) == (3, 7, 0)
    assert (found["stop_tokens"], found["output_logits"]) == ([], False)
    given = options(
        *("--num_samples", "2", "--stop_token", "5", "--stop_token", "Q", "--stop_token", "²"),
        *("--logprobs", "4", "--dump_logits", "x.npy", "--stop", "A"),
    )
    found = generation_options(given, 3, 7)
    # Only digits that int() takes are ids.
    assert found["stop_tokens"] == [5, "Q", "²"]
    assert (found["num_return_sequences"], found["top_log_probs"]) == (2, 4)
    assert (found["output_logits"], found["stop_strings"]) == (True, ["A"])


def test_scores_are_ranked_with_their_shares():
    scores = [Score(text, [1], [np.log(p)]) for text, p in ((" b", 0.1), (" a", 0.3))]
    assert score_lines(scores) == [
        "     -1.204   75.0%  ' a'",
        "     -2.303   25.0%  ' b'",
    ]


def test_log_probabilities_are_a_line_a_token():
    answer = Answer(0, ids=[1, 2], log_probs=[-0.5, -1.0])
    answer.alternatives = [[Alternative(3, "x", -0.25)]]  # interrupted before the second's
    (line,) = log_prob_lines(answer, {1: "one", 2: "two"}.__getitem__)
    assert line.split() == ["-0.500", "'one'", "'x'", "-0.250"]


class Script(Iterator[Piece]):
    """A stream of answers that says what it is told to, as (answer, text, whether it ends)."""

    def __init__(self, answers: list[Answer], steps: list[Any]) -> None:
        self.answers, self._steps = answers, iter(steps)

    def __next__(self) -> Piece:
        step = next(self._steps)
        if isinstance(step, BaseException):
            raise step
        number, text, ends = step
        answer = self.answers[number]
        answer.text += text
        answer.finish_reason = FinishReason.eos if ends else None
        return Piece(text, number)

    def token_text(self, token: int) -> str:
        return str(token)


def printed(answers: list[Answer], steps: list[Any], capsys: Any) -> list[str]:
    labels = [f"prompt {n}" for n in range(1 + max(answer.prompt for answer in answers))]
    Printer(labels, Script(answers, steps), False).run()  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


def test_later_answers_wait_for_their_turn(capsys):
    answers = [Answer(0), Answer(0, 1), Answer(1)]
    steps = [(1, "be", False), (0, "a", False), (2, "c", True), (1, "!", True), (0, "b", True)]
    assert printed(answers, steps, capsys) == [
        *("prompt:    prompt 0", "generated: ab", "generated: be!"),
        *("prompt:    prompt 1", "generated: c"),
    ]


def test_what_is_skipped_stands_in_its_place(capsys):
    answers = [Answer(0, error="no picture"), Answer(1)]
    assert printed(answers, [(1, "a", True)], capsys) == [
        *("prompt:    prompt 0", "skipped:   no picture", "prompt:    prompt 1", "generated: a")
    ]
    assert printed([Answer(0, error="no picture")], [], capsys)[1:] == ["skipped:   no picture"]


@pytest.mark.parametrize("first", [[], [(0, "a", False), (1, "b", False)]])
def test_an_interrupted_printer_shows_what_there_is(first, capsys):
    answers = [Answer(0), Answer(1)]
    with pytest.raises(KeyboardInterrupt):
        printed(answers, [*first, KeyboardInterrupt()], capsys)
    texts = ["a", "b"] if first else ["", ""]
    assert capsys.readouterr().out.splitlines() == [
        *("prompt:    prompt 0", f"generated: {texts[0]}"),
        *("prompt:    prompt 1", f"generated: {texts[1]}"),
    ]


def test_files_hold_all_answers_one_after_the_other(tmp_path):
    files = {name: tmp_path / name for name in ("logits.npy", "tokens.json")}
    argv = ["--dump_logits", str(files["logits.npy"]), "--dump_tokens", str(files["tokens.json"])]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    answers = [
        Answer(0, ids=[1, 2], prompt_ids=[9], kept_logits=[*rows[:2]]),
        Answer(1, ids=[3], kept_logits=[rows[2]]),
    ]
    dump(options(*argv), answers, 2)
    np.testing.assert_array_equal(np.load(files["logits.npy"]), rows)
    assert json.loads(files["tokens.json"].read_text()) == [
        {"prompt_ids": [9], "generated_ids": [1, 2]},
        {"prompt_ids": [], "generated_ids": [3]},
    ]
    dump(options(*argv), answers[:0], 2)
    assert np.load(files["logits.npy"]).shape == (0, 2)
