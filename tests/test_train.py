"""The program train.py: its command line, kills in earnest, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from training.convert_dataset import convert_dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A file of settings, with a dataset of eight pictures."""
    entries = []
    for k in range(8):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
        entries.append((path, {"captions": [f"picture {k}"]}))
    convert_dataset(tmp_path / "data", entries)
    values = {
        "batch_size": 4,
        "train_steps": 6,
        "model": "tiny",
        "train_dataset_dir": [str(tmp_path / "data")],
        "save": str(tmp_path / "run"),
        "save_every": 2,
        "eval_every": 3,
        "tensorboard": False,
    }
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(values))
    return file


def losses(folder: Path) -> dict[int, float]:
    """The logged training loss of each step."""
    lines = (folder / "losses.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {entry["step"]: entry["train/loss"] for entry in entries if "train/loss" in entry}


def start(*words: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, env=environment)


def test_trains_and_says_what_the_pictures_show(config: Path, tmp_path: Path, capsys):
    assert train.main(["--config", str(config), "--lr", "1e-3", "--log_level", "info"]) == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]
    assert "step 3: expected 'picture" in capsys.readouterr().err
    assert (tmp_path / "run" / "latest").read_text() == "global_step6"


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for words in ("--train_dataset_dir", "training.convert_dataset", "accelerate launch", "--lr"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lrr", "1"], "unknown option --lrr; did you mean '--lr'"),
        (["--lr", "fast"], "lr: expected float, found 'fast'"),
        (["--lr", "{"], "option --lr: '{' is no YAML"),
        (["--config", "none.yml"], "none.yml: cannot read the configuration"),
        ([], "name the data to train on"),
        (["--log_level", "loud"], "log level is 'loud'"),
    ],
)
def test_wrong_settings_are_one_line(words, message, capsys):
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.long
def test_a_run_killed_at_any_moment_goes_on_as_if_unbroken(config: Path, tmp_path: Path, rng):
    unbroken = start("--config", config, "--save", tmp_path / "whole", "--train_steps", "40")
    _, error = unbroken.communicate()
    assert unbroken.returncode == 0, error
    for _ in range(3):
        run = start("--config", config, "--train_steps", "40")
        while run.poll() is None and not (tmp_path / "run" / "latest").exists():
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 1)))
        run.send_signal(signal.SIGKILL)
        run.communicate()
    run = start("--config", config, "--train_steps", "40")
    _, error = run.communicate()
    assert run.returncode == 0, error
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_the_batches_of_one(config: Path, tmp_path: Path):
    # Each process takes the mean over its own tokens, and its batch norms see its own pictures:
    # so captions are equally long, and the encoder is frozen.
    for path in (tmp_path / "data" / "image_data").glob("*/*.json"):
        path.write_text(path.read_text().replace(f"picture {path.stem}", "a red cat"))
    words = ("--config", config, "--freeze_img_encoder", "--lr", "5e-3")
    found = {}
    for name, launcher in (
        ("one", ()),
        ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")),
    ):
        run = start(*words, "--save", tmp_path / name, launcher=launcher)
        _, error = run.communicate()
        assert run.returncode == 0, error
        found[name] = losses(tmp_path / name)
    assert list(found["one"]) == list(found["two"]) == [1, 2, 3, 4, 5, 6]
    assert list(found["one"].values()) == pytest.approx(list(found["two"].values()), abs=1e-4)
