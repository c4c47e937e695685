"""The training model against the independent one, and against its own definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.reference.magma import ReferenceMagma
from tests.small_configs import small_config
from tests.tolerances import FLOAT32, assert_close
from training.model import IGNORED, Magma, caption_labels
from training.weights import load_magma
from utils.checkpoint_writer import write_random_checkpoint

EOS = 3


@pytest.fixture(scope="module")
def config():
    return small_config(image_resolution=64)


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    write_random_checkpoint(path, config, seed=5, dtype="float32", positions=16)
    return path


@pytest.fixture
def model(config, checkpoint: Path) -> Magma:
    model = Magma(config)
    load_magma(model, checkpoint)
    return model.eval().requires_grad_(False)


def batch(config, rng: np.random.Generator, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and padded captions of different lengths, one without end."""
    side, t = config.visual.image_resolution, config.text_tokens
    pixels = torch.from_numpy(rng.standard_normal((rows, 3, side, side)).astype(np.float32))
    ids = torch.from_numpy(rng.integers(EOS + 1, 106, (rows, t)))
    for row, length in enumerate(rng.permutation(t - 1)[: rows - 1] + 1):
        ids[row, length:] = EOS
    return pixels, ids


def plain_loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """The mean loss of every target in turn, from logits of the whole sequence."""
    first = logits.shape[1] - ids.shape[1]
    losses = []
    for row, text in enumerate(ids.tolist()):
        for place, token in enumerate(text):
            if first + place > 0:
                target = torch.tensor(token)
                losses.append(cross_entropy(logits[row, first + place - 1], target))
            if token == EOS:
                break
    return float(torch.stack(losses).mean())


def test_logits_equal_the_reference(model: Magma, config, checkpoint: Path, rng):
    pixels, ids = batch(config, rng)
    expected = ReferenceMagma.from_checkpoint(checkpoint, config).logits(pixels, ids)
    assert_close(model.logits(ids, pixels).numpy(), expected.numpy(), FLOAT32)


def test_loss_equals_the_one_of_the_reference_logits(model: Magma, config, checkpoint: Path, rng):
    pixels, ids = batch(config, rng)
    reference = ReferenceMagma.from_checkpoint(checkpoint, config)
    loss = model(ids, caption_labels(ids, EOS), pixels)
    assert float(loss) == pytest.approx(plain_loss(reference.logits(pixels, ids), ids), abs=FLOAT32)


def test_loss_of_text_alone_leaves_out_its_first_token(model: Magma, config, rng):
    _, ids = batch(config, rng)
    loss = model(ids, caption_labels(ids, EOS))
    assert float(loss) == pytest.approx(plain_loss(model.logits(ids), ids), abs=FLOAT32)


def test_padding_changes_no_loss(model: Magma, config, rng):
    pixels, ids = batch(config, rng)
    short = ids[:, :5].clone()
    short[:, 3:] = EOS
    longer = torch.nn.functional.pad(short, (0, 4), value=EOS)
    losses = [float(model(t, caption_labels(t, EOS), pixels)) for t in (short, longer)]
    assert losses[0] == pytest.approx(losses[1], abs=FLOAT32)


def test_a_batch_without_targets_has_loss_zero(model: Magma, config, rng):
    pixels, ids = batch(config, rng)
    assert float(model(ids, torch.full_like(ids, IGNORED), pixels)) == 0


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([[5, 6, EOS, EOS, EOS]], [[5, 6, EOS, IGNORED, IGNORED]]),
        ([[5, 6, 7, 8, 9]], [[5, 6, 7, 8, 9]]),
        ([[EOS, 6, 7, 8, 9]], [[EOS, IGNORED, IGNORED, IGNORED, IGNORED]]),
    ],
)
def test_labels_end_with_the_first_end_of_text(ids, labels):
    assert caption_labels(torch.tensor(ids), EOS).tolist() == labels


def test_greedy_continuations_equal_the_reference(model: Magma, config, checkpoint: Path, rng):
    pixels, _ = batch(config, rng)
    prompt = torch.from_numpy(rng.integers(EOS + 1, 106, (3, 4)))
    reference = ReferenceMagma.from_checkpoint(checkpoint, config)
    reference.lm.lm_head.bias.data[106:] = -torch.inf  # columns that are no tokens
    expected = reference.greedy(pixels, prompt, 6).tolist()
    ends = [row.index(EOS) if EOS in row else 6 for row in expected]
    found = model.generate(prompt, pixels, 6, EOS)
    assert found == [row[:end] for row, end in zip(expected, ends, strict=True)]


def test_a_blind_model_does_not_see_the_picture(model: Magma, config, rng):
    pixels, ids = batch(config, rng)
    seeing = model.logits(ids, pixels)
    model.blind = True
    blind = model.logits(ids, pixels)
    assert not torch.allclose(seeing, blind)
    assert torch.equal(blind, model.logits(ids, -2 * pixels))
    assert torch.equal(blind, model.logits(ids, torch.zeros_like(pixels)))


def test_image_dropout_acts_in_training_only(config, checkpoint: Path, rng):
    dropping = Magma(config, image_dropout=0.5)
    load_magma(dropping, checkpoint)
    dropping.image_prefix.enc.requires_grad_(False)  # or batch norms would differ as well
    pixels, ids = batch(config, rng)
    quiet = dropping.eval().logits(ids, pixels)
    assert torch.equal(quiet, dropping.logits(ids, pixels))
    dropping.train()
    assert not torch.allclose(quiet, dropping.logits(ids, pixels))


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_learn_statistics_only_in_a_trained_encoder(model: Magma, config, rng, frozen):
    model.image_prefix.enc.requires_grad_(not frozen)
    before = model.image_prefix.enc.bn1.running_mean.clone()
    pixels, ids = batch(config, rng)
    model.train().logits(ids, pixels)
    assert torch.equal(before, model.image_prefix.enc.bn1.running_mean) == frozen
