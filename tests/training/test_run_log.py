"""Logs of a run: the file of losses, TensorBoard, and what is said where a package is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from training.config import TrainConfig
from training.loop import Trainer
from training.model import Magma
from training.run_log import LOSS_FILE, trackers
from training.samples import Captions
from utils.errors import UserError


def run(tmp_path: Path, pairs, tokenizer, **values) -> Trainer:
    config = TrainConfig(train_steps=3, eval_every=2, save=str(tmp_path), **values)
    samples = Captions(pairs, tokenizer, 48, 16)
    trainer = Trainer(Magma(config.model), config, tokenizer, samples, samples)
    trainer.run()
    return trainer


def test_the_file_of_losses_has_every_step_and_evaluation(tmp_path: Path, pairs, tokenizer):
    trainer = run(tmp_path, pairs, tokenizer, tensorboard=False)
    entries = [json.loads(line) for line in (tmp_path / LOSS_FILE).read_text().splitlines()]
    assert [e["train/loss"] for e in entries if "train/loss" in e] == trainer.losses
    found = [(e["step"], e["eval/loss"]) for e in entries if "eval/loss" in e]
    assert found == trainer.eval_losses
    assert [step for step, _ in found] == [2, 3]


def test_a_resumed_run_writes_no_step_twice(tmp_path: Path, pairs, tokenizer):
    old = [{"step": 0}, {"step": 1, "train/loss": 9.0}, {"step": 2, "train/loss": 8.0}]
    text = "".join(json.dumps(entry) + "\n" for entry in old)
    (tmp_path / LOSS_FILE).write_text(text + '{"step": 2, "tra')
    run(tmp_path, pairs, tokenizer, tensorboard=False)
    entries = [json.loads(line) for line in (tmp_path / LOSS_FILE).read_text().splitlines()]
    assert [e["step"] for e in entries if "eval/loss" not in e] == [0, 1, 2, 3]
    assert entries[1]["train/loss"] < 9


def test_tensorboard_gets_losses_and_captions(tmp_path: Path, pairs, tokenizer):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = run(tmp_path, pairs, tokenizer)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "magma")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(trainer.losses)
    assert "inference/captions/text_summary" in events.Tags()["tensors"]


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        trackers(TrainConfig(wandb_project="p"))
    with pytest.raises(UserError, match="pip install tensorboard"):
        trackers(TrainConfig(save="x"))
    assert trackers(TrainConfig()) == []
