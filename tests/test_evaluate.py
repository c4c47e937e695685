"""evaluate.py as a program: what it writes, how it goes on after a stop, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import evaluate
from tests.datasets import captions, question, write_dataset
from utils.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
QUIET = (
    "--metrics",
    "bleu",
    "--model",
    "tiny",
    "--max_out_tokens",
    "3",
    "--batch",
    "2",
    "--log_level",
    "ERROR",
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path, rng) -> Path:
    return write_dataset(tmp_path / "data", captions(*"abcdefg"), rng)


@pytest.fixture
def questions(tmp_path: Path, rng) -> Path:
    records = [question(f"{i}?", *["yes"] * i, *["no"] * (10 - i)) for i in range(1, 8)]
    return write_dataset(tmp_path / "questions", records, rng)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_captions_from_dataset_to_page(data: Path, tmp_path: Path, capsys):
    out = tmp_path / "new" / "out"
    assert evaluate.main(["captions", str(data), "--out", str(out), *QUIET]) == 0
    settings, *results = lines(out)
    assert [result["name"] for result in results] == [f"image_data/0/{i}.json" for i in range(7)]
    assert [result["references"] for result in results] == [[letter] for letter in "abcdefg"]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["samples"] == 7
    assert scores["settings"] == settings["settings"]
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 7
    assert "7 samples, 0 left out" in capsys.readouterr().out


def test_questions_with_examples(questions: Path, tmp_path: Path):
    out = tmp_path / "out"
    arguments = [
        "vqa",
        str(questions),
        "--out",
        str(out),
        "--train",
        str(questions),
        "--limit",
        "4",
    ]
    arguments += ["--shots", "2", *QUIET[2:]]
    assert evaluate.main(arguments) == 0
    _, *results = lines(out)
    assert len(results) == 4
    assert all(len(set(r["examples"]) - {r["name"]}) == 2 for r in results)
    predictions, references = ([r[key] for r in results] for key in ("prediction", "references"))
    assert all(len(answers) == 10 for answers in references)
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert scores == {"vqa": METRICS["vqa"](predictions, references).total}


def test_a_stopped_run_goes_on_where_it_was(data: Path, tmp_path: Path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert evaluate.main(["captions", str(data), "--out", str(whole), *QUIET]) == 0
    made: list[list[str]] = []
    original = evaluate.answer_all

    def stopping(magma, task, samples, *others):
        for batch in original(magma, task, samples, *others):
            if len(made) == 2:
                raise KeyboardInterrupt
            made.append([result.name for result in batch])
            yield batch

    arguments = ["captions", str(data), "--out", str(parts), *QUIET]
    monkeypatch.setattr(evaluate, "answer_all", stopping)
    assert evaluate.main(arguments) == 130
    assert not (parts / "scores.json").exists()
    made.clear()
    with (parts / "results.jsonl").open("ab") as file:
        file.write(b'{"name": "image_data/0/4.js')
    assert evaluate.main(arguments) == 0
    assert made == [["image_data/0/4.json", "image_data/0/5.json"], ["image_data/0/6.json"]]
    for name in ("results.jsonl", "scores.json", "report.html"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    monkeypatch.setattr(evaluate.Magma, "from_pretrained", None)
    assert evaluate.main(arguments) == 0  # all is there: no model is opened


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, rng):
    data = write_dataset(tmp_path / "data", captions(*"abcdefgh" * 12), rng)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["captions", str(data), *QUIET]
    assert evaluate.main([*arguments, "--out", str(whole)]) == 0
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments, "--out", str(parts)]
    process = subprocess.Popen(command, env=dict(os.environ), cwd=ROOT)
    file, deadline = parts / "results.jsonl", time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < 9:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 8 <= len(file.read_bytes().splitlines()) < 97
    assert evaluate.main([*arguments, "--out", str(parts)]) == 0
    for name in ("results.jsonl", "scores.json", "report.html"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_bad_samples_are_left_out_on_demand(data: Path, tmp_path: Path, capsys):
    (data / "images/0/1.png").write_bytes(b"no picture")
    (data / "image_data/0/2.json").write_text("{")
    arguments = ["captions", str(data), "--out", str(tmp_path / "out"), *QUIET]
    assert evaluate.main(arguments) == 2
    assert "2.json: malformed JSON" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--skip_bad"]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["samples"] == 5
    assert "2.json" in scores["left_out"][0]
    assert "1.png: is no picture" in scores["left_out"][1]
    assert "5 samples, 2 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captions", "DATA", "--shots", "1"], "--shots 1 needs --train"),
        (["captions", "DATA", "--shots", "-1"], "--shots is -1; it must be 0 or greater"),
        (["captions", "DATA", "--limit", "0"], "--limit is 0"),
        (["captions", "DATA", "--metrics", "blue"], "unknown metric 'blue'; did you mean 'bleu'?"),
        (["vqa", "DATA", "--prompt", "What?"], "--prompt of vqa must say"),
        (["vqa", "DATA"], '0.json: "metadata" has no "question"'),
        (["nonsense", "DATA"], "invalid choice"),
        (["captions", "DATA", "--model"], "--model: expected one argument (--help explains)"),
        (["captions", "DATA", "--metrics", "bleu", "--model", "no/such"], "no such checkpoint"),
        (["captions", "none", "--metrics", "bleu"], "none: is no dataset"),
        (
            ["captions", "DATA", "--metrics", "bleu", "--shots", "7", "--train", "DATA"],
            "has 6 possible examples in the train split of 7, but 7 are asked for",
        ),
    ],
)
def test_wrong_input_ends_with_one_line(arguments, message, data: Path, tmp_path: Path, capsys):
    arguments = [str(data) if text == "DATA" else text for text in arguments]
    arguments += ["--out", str(tmp_path / "out"), "--log_level", "ERROR"]
    arguments += [] if "--model" in arguments else ["--model", "tiny"]
    assert evaluate.main(arguments) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert message in line


def test_other_settings_do_not_mix_with_answers_that_are_there(data, tmp_path, capsys):
    arguments = ["captions", str(data), "--out", str(tmp_path / "out"), *QUIET]
    assert evaluate.main(arguments) == 0
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert evaluate.main([*arguments, "--prompt", "A photo of"]) == 2
    assert "was made with prompt 'A picture of', now it is 'A photo of'" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "examples:",
        "--shots",
        "results.jsonl",
        "pycocoevalcap",
        "A picture of (captions)",
    ):
        assert part in text
