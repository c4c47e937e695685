"""Whole runs from settings: where they start, what they continue, what they refuse."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from tests.utils.published_module import deepspeed_file
from training.config import TrainConfig, read_config, read_yaml
from training.convert_dataset import convert_dataset
from training.loop import Trainer
from training.model import Magma
from training.run import train
from training.run_log import LOSS_FILE
from training.weights import load_magma, published_name
from utils.errors import UserError


@pytest.fixture
def data(pairs, tmp_path: Path) -> Path:
    """A dataset of eight pictures on disk."""
    entries = []
    for k, (picture, caption) in enumerate(pairs):
        path = tmp_path / f"{k}.png"
        picture.save(path)
        entries.append((path, {"captions": [caption, caption.upper()]}))
    convert_dataset(tmp_path / "data", iter(entries))
    return tmp_path / "data"


def settings(data: Path, **values) -> TrainConfig:
    defaults = {"batch_size": 4, "train_steps": 4, "save_every": 2, "eval_every": 100}
    defaults |= {"train_dataset_dir": str(data), "tensorboard": False, "warmup_num_steps": 2}
    return read_config({**defaults, **values}, "test")


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer._plain.state_dict()


def test_the_same_command_goes_on_after_a_stop(data: Path, tmp_path: Path):
    unbroken = train(settings(data, train_steps=4))
    train(settings(data, train_steps=2, save=str(tmp_path / "run")))
    continued = train(settings(data, train_steps=4, save=str(tmp_path / "run")))
    assert continued.losses == unbroken.losses[2:]
    for name, tensor in state_of(continued).items():
        assert torch.equal(tensor, state_of(unbroken)[name]), name
    logged = (tmp_path / "run" / LOSS_FILE).read_text().splitlines()
    steps = [json.loads(line) for line in logged]
    assert [entry["train/loss"] for entry in steps if "train/loss" in entry] == unbroken.losses
    finished = train(settings(data, train_steps=4, save=str(tmp_path / "run")))
    assert finished.losses == []


def test_load_continues_another_folder_with_or_without_its_optimiser(data: Path, tmp_path: Path):
    unbroken = train(settings(data))
    train(settings(data, train_steps=2, save=str(tmp_path / "run")))
    folder = str(tmp_path / "run" / "global_step2")
    assert train(settings(data, load=folder)).losses == unbroken.losses[2:]
    anew = train(settings(data, load=folder, load_optimizer=False))
    assert len(anew.losses) == 4
    assert anew.losses != unbroken.losses


def test_a_folder_of_deepspeed_itself_gives_weights_and_step(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    donor = Magma(settings(data).model)
    folder = tmp_path / "old" / "global_step3"
    folder.mkdir(parents=True)
    named = {published_name(name): tensor for name, tensor in donor.state_dict().items()}
    torch.save(deepspeed_file(named), folder / "mp_rank_00_model_states.pt")
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"shards")
    (tmp_path / "old" / "latest").write_text("global_step3")
    with caplog.at_level(logging.INFO):
        trainer = train(settings(data, load=str(tmp_path / "old"), lr=1e-12))
    assert len(trainer.losses) == 1
    assert "has no optimiser that can be read here" in caplog.text
    proj = "image_prefix.proj.weight"
    assert torch.allclose(state_of(trainer)[proj], donor.state_dict()[proj])


def test_a_checkpoint_is_where_a_run_starts(data: Path, tmp_path: Path):
    train(settings(data, save=str(tmp_path / "first")))
    start = str(tmp_path / "first" / "global_step4" / "mp_rank_00_model_states.pt")
    second = train(settings(data, checkpoint=start, lr=1e-12))
    expected = Magma(settings(data).model)
    load_magma(expected, start)
    for name, parameter in expected.named_parameters():
        assert torch.allclose(state_of(second)[name], parameter, atol=1e-8), name
    assert len(second.losses) == 4


def test_evaluation_uses_a_share_of_the_samples_or_a_dataset_of_its_own(data: Path):
    for values in ({"eval_dataset_pct": 0.25}, {"eval_dataset_dir": [str(data)]}):
        trainer = train(settings(data, eval_every=2, **values))
        assert [step for step, _ in trainer.eval_losses] == [2, 4]
    assert train(settings(data, eval_dataset_pct=0)).eval_losses == []


def test_text_files_train_the_language_model(tmp_path: Path, data: Path):
    (tmp_path / "a.txt").write_text("a red cat\ntwo blue trees\n" * 5)
    values = {"train_dataset_dir": [], "train_text_files": str(tmp_path / "a.txt")}
    trainer = train(settings(data, freeze_lm=False, train_steps=10, eval_every=10, **values))
    assert trainer.losses[-1] < trainer.losses[0] - 0.5
    assert len(trainer.eval_losses) == 1


def test_bad_samples_stop_the_run_or_are_left_out(data: Path):
    (data / "image_data" / "0" / "3.json").write_text("{")
    with pytest.raises(UserError, match=r"1 of 8 samples are bad, the first: .*3\.json"):
        train(settings(data))
    assert len(train(settings(data, skip_bad=True)).losses) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_dataset_dir": []}, "name the data to train on"),
        ({"train_text_files": ["a.txt"]}, "name the data to train on"),
        ({"train_dataset_dir": ["no such"]}, "no such: is no dataset"),
        ({"load": "x/y"}, "load: x/y: no such file or folder"),
        ({"load": "n" * 300}, "load: n*: no such file or folder"),
        ({"checkpoint": "x/y"}, "checkpoint: x/y: no such file or folder"),
        ({"lm_checkpoint": "x/y"}, "lm_checkpoint: x/y: no such file or folder"),
        ({"encoder_checkpoint": "x/y"}, "encoder_checkpoint: x/y: no such file or folder"),
    ],
)
def test_refuses_in_one_line(data: Path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        train(settings(data, **values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["magma_v1", "magma_v2"])
def test_published_settings_name_what_is_missing_before_a_model_is_built(name, monkeypatch):
    path = Path(__file__).parents[2] / "training" / "configs" / f"{name}.yml"
    monkeypatch.setattr("training.run.Magma", None)
    with pytest.raises(UserError, match=r"lm_checkpoint: .*no such file or folder"):
        train(read_config(read_yaml(path), str(path)))


def test_empty_text_files_are_named(tmp_path: Path, data: Path):
    (tmp_path / "a.txt").write_text("\n\n")
    values = {"train_dataset_dir": [], "train_text_files": str(tmp_path / "a.txt")}
    with pytest.raises(UserError, match=r"a\.txt: no samples"):
        train(settings(data, **values))


def test_a_tokenizer_larger_than_the_model_is_refused(data: Path):
    values = settings(data)
    values.model.transformer.embedding.real_vocab_size = 500
    with pytest.raises(UserError, match="tokenizer has 512 entries, the word embedding only 500"):
        train(values)


@pytest.mark.parametrize("kind", ["normal", "parallel", "scaled_parallel"])
def test_every_kind_of_adapter_trains_and_resumes(data: Path, tmp_path: Path, kind):
    places = {"mlp": {"adapter_type": kind}, "attention": {"adapter_type": kind}}
    values = {"adapter_config": places, "save": str(tmp_path / kind), "lr": 1e-2}
    before = train(settings(data, train_steps=2, **values))
    after = train(settings(data, train_steps=3, **values))
    assert len(before.losses + after.losses) == 3
    torch.manual_seed(0)
    fresh = Magma(settings(data).model, settings(data, **values).layout)
    trained = Magma(fresh.config, fresh.layout)
    load_magma(trained, tmp_path / kind)
    for name, tensor in trained.state_dict().items():
        if name.startswith("lm."):
            assert torch.equal(tensor, fresh.state_dict()[name]) == (".adapter" not in name), name
