"""Runs of a few steps: they learn, leave frozen parameters alone, and go on after a kill."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from training.checkpoint import find_training_state
from training.config import TrainConfig, read_config
from training.loop import Trainer
from training.model import Magma
from training.run_log import LOSS_FILE
from training.samples import Captions, Texts
from training.weights import load_magma
from utils.errors import UserError

TOKENS = 24


def settings(**values) -> TrainConfig:
    defaults = {"batch_size": 8, "train_steps": 6, "lr": 5e-3, "warmup_num_steps": 4}
    return read_config({**defaults, "tensorboard": False, **values}, "test")


def fresh_model(config: TrainConfig) -> Magma:
    torch.manual_seed(config.seed)
    return Magma(config.model, config.layout, config.image_embed_dropout_prob)


@pytest.fixture
def captions(pairs, tokenizer) -> Captions:
    return Captions(pairs, tokenizer, 48, TOKENS)


def text_trained(pairs, tokenizer, steps: int = 60) -> Magma:
    """A model whose language model knows the captions by heart, without pictures."""
    config = settings(train_steps=steps, lr=3e-3, freeze_lm=False, train_text_files=["-"])
    model = fresh_model(config)
    Trainer(model, config, tokenizer, Texts([c for _, c in pairs], tokenizer, TOKENS)).run()
    return model


def test_overfits_eight_pictures_to_exact_captions(pairs, captions, tokenizer):
    model = text_trained(pairs, tokenizer)
    config = settings(train_steps=60, lr=2e-2, warmup_num_steps=10, lr_decay_iters=60)
    trainer = Trainer(model, config, tokenizer, captions)
    trainer.run()
    found = trainer.captions(captions, 8)
    assert sorted(expected for expected, _ in found) == sorted(caption for _, caption in pairs)
    assert [answer for _, answer in found] == [expected for expected, _ in found]


def test_a_blind_model_cannot_tell_the_pictures_apart(pairs, captions, tokenizer):
    model = text_trained(pairs, tokenizer)
    config = settings(train_steps=10, run_blind=True)
    trainer = Trainer(model, config, tokenizer, captions)
    trainer.run()
    assert len({answer for _, answer in trainer.captions(captions, 8)}) == 1


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_frozen_parameters_do_not_change_by_a_bit(captions, tokenizer, freeze_encoder):
    config = settings(freeze_img_encoder=freeze_encoder, weight_decay=0.1)
    model = fresh_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, config, tokenizer, captions).run()
    after = model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    lm = {name for name in before if name.startswith("lm.") and ".adapter" not in name}
    encoder = {name for name in before if name.startswith("image_prefix.enc.")}
    assert same == (lm | encoder if freeze_encoder else lm)


def test_text_training_leaves_the_image_prefix_alone(pairs, tokenizer):
    config = settings(freeze_lm=False, train_text_files=["-"])
    model = fresh_model(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    texts = Texts([caption for _, caption in pairs], tokenizer, TOKENS)
    trainer = Trainer(model, config, tokenizer, texts)
    trainer.run()
    assert trainer.losses[-1] < trainer.losses[0]
    changed = {n for n, t in model.state_dict().items() if not torch.equal(before[n], t)}
    assert changed
    assert all(name.startswith("lm.") for name in changed)


class Killed(Exception):
    """Stands for the end of a process."""


def killed_run(config: TrainConfig, tokenizer, captions, after: int) -> list[float]:
    """Losses of a run that ends without notice after so many steps."""
    trainer = Trainer(fresh_model(config), config, tokenizer, captions)
    ordinary = trainer._train_step

    def step(batches):
        if trainer.step == after:
            raise Killed
        return ordinary(batches)

    trainer._train_step = step
    with pytest.raises(Killed):
        trainer.run()
    return trainer.losses


@pytest.mark.parametrize("parts", [1, 2])
def test_a_killed_run_goes_on_with_the_losses_of_an_unbroken_one(
    captions, tokenizer, tmp_path: Path, rng, parts
):
    values = {
        "train_steps": 8,
        "batch_size": 4,
        "gradient_accumulation_steps": parts,
        "image_embed_dropout_prob": 0.2,
        "image_enc_lr": 1e-3,
        "lr_decay_iters": 9,
        "save_every": 3,
        "eval_every": 2,
    }
    unbroken = settings(**values, save=str(tmp_path / "unbroken"))
    whole = Trainer(fresh_model(unbroken), unbroken, tokenizer, captions, captions)
    whole.run()

    broken = settings(**values, save=str(tmp_path / "broken"))
    kill_after = int(rng.integers(3, 8))
    killed = killed_run(broken, tokenizer, captions, kill_after)
    assert killed == whole.losses[:kill_after]
    model = Magma(broken.model, broken.layout, broken.image_embed_dropout_prob)
    load_magma(model, tmp_path / "broken")
    state = find_training_state(tmp_path / "broken")
    assert state["step"] == kill_after // 3 * 3
    resumed = Trainer(model, broken, tokenizer, captions, captions, state)
    resumed.run()
    assert resumed.losses == whole.losses[state["step"] :]
    assert resumed.eval_losses[-1] == whole.eval_losses[-1]


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    captions, tokenizer, tmp_path: Path
):
    config = settings(train_steps=4, save=str(tmp_path), save_every=2)
    trainer = Trainer(fresh_model(config), config, tokenizer, captions)
    ordinary = trainer._train_step

    def step(batches):
        if trainer.step == 3:
            with torch.no_grad():
                trainer._plain.image_prefix.proj.bias.fill_(torch.nan)
        return ordinary(batches)

    trainer._train_step = step
    with pytest.raises(UserError, match=r"step 4: the loss is nan .*pair \d.*global_step2"):
        trainer.run()
    assert (tmp_path / "latest").read_text() == "global_step2"
    logged = [json.loads(line) for line in (tmp_path / LOSS_FILE).read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2, 3]


def test_accumulated_parts_give_the_step_of_the_whole_batch(captions, tokenizer):
    finals = []
    for parts in (1, 4):
        # A frozen encoder: batch norms see the parts one by one. Equal lengths: so do means.
        config = settings(gradient_accumulation_steps=parts, train_steps=2, freeze_img_encoder=True)
        model = fresh_model(config)
        equal = Captions([(p, "red cat") for p, _ in captions._pairs], tokenizer, 48, TOKENS)
        trainer = Trainer(model, config, tokenizer, equal)
        trainer.run()
        finals.append((trainer.losses, model.image_prefix.proj.weight.detach().clone()))
    assert finals[0][0] == pytest.approx(finals[1][0], abs=1e-5)
    assert torch.allclose(finals[0][1], finals[1][1], atol=1e-4)


def test_recomputed_activations_change_no_loss(captions, tokenizer):
    places = {"mlp": {"adapter_type": "parallel"}, "attention": {}}
    found = []
    for checkpointing in (False, True):
        config = settings(gradient_checkpointing=checkpointing, adapter_config=places)
        trainer = Trainer(fresh_model(config), config, tokenizer, captions)
        trainer.run()
        found.append(trainer.losses)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0][-1] < found[0][0]


def test_bfloat16_follows_float32(captions, tokenizer):
    found = []
    for precision in ("no", "bf16"):
        config = settings(mixed_precision=precision)
        trainer = Trainer(fresh_model(config), config, tokenizer, captions)
        trainer.run()
        found.append(trainer.losses)
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_refuses_a_batch_that_parts_do_not_divide(captions, tokenizer):
    config = settings(gradient_accumulation_steps=3)
    with pytest.raises(UserError, match="batch_size is 8; it must be a multiple of 3"):
        Trainer(fresh_model(config), config, tokenizer, captions)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_refuses_a_precision_that_a_cpu_would_ignore(captions, tokenizer):
    config = settings(mixed_precision="fp16")
    with pytest.raises(UserError, match="fp16, which needs a GPU"):
        Trainer(fresh_model(config), config, tokenizer, captions)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="it is installed")
def test_names_the_package_that_a_launch_with_deepspeed_needs(captions, tokenizer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="pip install deepspeed"):
        Trainer(fresh_model(settings()), settings(), tokenizer, captions)


def test_says_where_nothing_is_kept(captions, tokenizer, caplog):
    config = settings(train_steps=1)
    Trainer(fresh_model(config), config, tokenizer, captions).run()
    assert "nothing of this run is kept" in caplog.text


def test_refuses_an_empty_dataset(tokenizer):
    with pytest.raises(UserError, match="no samples"):
        Trainer(fresh_model(settings()), settings(), tokenizer, Captions([], tokenizer, 48, TOKENS))
