"""The model in models/world: its files, and what it answers through the phases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import evaluate
import run_inference
from benchmarks.measure_world import Examinee, Figure, measure, table
from config.parsing import load_preset
from execution.magma import Magma
from training.world import make_dataset
from training.world.exam import caption_tasks, fact_tasks, topic_tasks
from training.world.scenes import split_of
from utils.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "world"
EXAMPLES = ROOT / "examples" / "world"
ENTRIES = json.loads((EXAMPLES / "prompts.json").read_text())

LONGEST_ANSWER = 20


@pytest.fixture(scope="module")
def magma() -> Iterator[Magma]:
    """The shipped model."""
    with Magma.from_pretrained("world", max_batch=len(ENTRIES)) as opened:
        yield opened


def test_the_examples_are_answered_right(magma: Magma):
    answers = magma.generate(
        [EXAMPLES / entry["picture"] for entry in ENTRIES],
        [entry["prompt"] for entry in ENTRIES],
        temperature=0,
        max_new_tokens=LONGEST_ANSWER,
    )
    found = [answer.text.strip() for answer in answers]
    assert found == [entry["answer"] for entry in ENTRIES]


def test_there_are_a_dozen_examples_with_captions_and_questions():
    assert len(ENTRIES) == 12
    assert {entry["picture"] for entry in ENTRIES} == {p.name for p in EXAMPLES.glob("*.jpg")}
    prompts = {entry["prompt"] for entry in ENTRIES}
    assert "A picture of" in prompts
    assert any("something that" in prompt for prompt in prompts)


def test_the_program_without_options_uses_it(capsys: pytest.CaptureFixture[str]):
    assert run_inference.main(["--temperature", "0", "--log_level", "ERROR"]) == 0
    output = capsys.readouterr().out
    assert f"generated:  {ENTRIES[0]['answer']}" in output
    assert "decode/decoder" in output


def test_the_files_are_small_and_whole():
    files = [path for path in MODEL.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir()) <= 1e6
    open_checkpoint(MODEL, load_preset("world"))
    assert {"README.md", "LICENSE", "vocab.json", "merges.txt"} <= {path.name for path in files}


def test_evaluation_of_a_drawn_dataset_agrees_with_the_exam(magma: Magma, tmp_path: Path):
    tasks = topic_tasks("fact", "held_out", 6, 0)
    assert make_dataset.main([str(tmp_path / "data"), "--pictures", "6"]) == 0
    argv = ["vqa", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--batch", "6"]
    assert evaluate.main([*argv, "--max_out_tokens", "5", "--log_level", "ERROR"]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()[1:]
    found = [json.loads(line) for line in lines]
    expected = Examinee(magma.config, 6, MODEL).answer(tasks, 5)
    assert [result["prediction"] for result in found] == [text.strip() for text in expected]
    assert [result["prompt"] for result in found] == [task.prompt for task in tasks]


def test_a_blind_model_answers_the_same_to_every_picture(magma: Magma):
    examinee = Examinee(magma.config, 4, MODEL)
    facts = fact_tasks("held_out", 1, 1)[:2]
    assert len(set(examinee.answer(facts, 3, blind=True))) == 1
    assert {split_of(task.scene) for task in facts} == {"held_out"}


def test_captions_of_new_pictures_are_mostly_right(magma: Magma):
    tasks = caption_tasks("held_out", 24, seed=99)
    texts = Examinee(magma.config, 12, MODEL).answer(tasks, LONGEST_ANSWER)
    right = sum(task.is_right(text) for task, text in zip(tasks, texts, strict=True))
    assert right >= len(tasks) // 2


@pytest.mark.long
def test_a_small_share_of_the_figures(magma: Magma):
    figures = {f.name: f.right / f.total for f in measure(Examinee(magma.config, 10, MODEL), 0.05)}
    assert figures["fact, yes or no"] > 0.6
    assert 0.4 <= figures["fact, yes or no, blind"] <= 0.6


def test_a_figure_is_a_row_of_the_table():
    lines = table([Figure("caption", 90, 100)]).splitlines()
    assert lines[2] == "| caption | 90.0% | 82.6% to 94.5% | 100 |"


def test_the_model_card_has_the_measured_figures():
    card = (MODEL / "README.md").read_text()
    assert (MODEL / "figures.md").read_text() in card
