"""The encoder's first training: targets from captions' nouns, exact resumption, learning."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from training.resnet import ModifiedResNet
from training.world.album import Album
from training.world.encoder import (
    EncoderRun,
    NounCounter,
    log_counts,
    noun_targets,
    train_encoder,
)
from training.world.kinds import COUNTS, KINDS, PLACES
from utils.tokenizer import load_tokenizer

WIDTH = 8
RUN = EncoderRun(steps=4, batch=4, warmup=2, save_every=2)


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """Twelve pictures of 64 pixels."""
    tokenizer = load_tokenizer("models/world")
    return Album(tmp_path / "album.npy", tokenizer, "train", 12, seed=1, side=64)


def encoder() -> ModifiedResNet:
    """A narrow encoder."""
    torch.manual_seed(0)
    return ModifiedResNet((1, 1, 1, 1), WIDTH)


def test_targets_are_the_counts_and_the_place_of_each_scene(album: Album):
    counts, places = noun_targets(album)
    for row, place, scene in zip(counts, places, album.scenes, strict=True):
        expected = {group.kind: group.count for group in scene.groups}
        found = {kind: int(n) for kind, n in zip(KINDS, row.tolist(), strict=True) if n}
        assert found == expected
        assert list(PLACES)[place] == scene.place


def test_counts_have_the_probabilities_of_all_ways_to_hold_things(rng: np.random.Generator):
    events, most = 6, 4
    logits = torch.from_numpy(rng.normal(scale=2, size=(2, events, 3)))
    single = torch.sigmoid(logits)
    expected = torch.zeros(2, 3, events + 1, dtype=torch.float64)
    for way in itertools.product((0, 1), repeat=events):
        chosen = torch.tensor(way)[None, :, None]
        expected[..., sum(way)] += torch.where(chosen == 1, single, 1 - single).prod(1)
    found = log_counts(logits, most).exp()
    torch.testing.assert_close(found, expected[..., : most + 1], rtol=1e-12, atol=0)


def test_a_fresh_counter_expects_few_things(album: Album):
    counts, place = NounCounter(encoder(), 32 * WIDTH)(album.pixels([0, 1]))
    assert counts.shape == (2, len(KINDS), len(COUNTS) + 1)
    assert place.shape == (2, len(PLACES))
    numbers = counts.exp() * torch.arange(len(COUNTS) + 1)
    assert numbers.sum(-1).mean() < 0.5


def test_a_run_goes_on_from_its_checkpoint(album: Album, tmp_path: Path):
    whole = train_encoder(encoder(), 32 * WIDTH, album, RUN, tmp_path / "whole.pt")
    checkpoint = tmp_path / "encoder.pt"
    train_encoder(encoder(), 32 * WIDTH, album, RUN, checkpoint)
    assert train_encoder(encoder(), 32 * WIDTH, album, RUN, checkpoint) == []
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == RUN.steps
    assert len(whole) == RUN.steps


def test_the_loss_falls(album: Album, tmp_path: Path):
    run = EncoderRun(steps=25, batch=12, warmup=5, save_every=100)
    losses = train_encoder(encoder(), 32 * WIDTH, album, run, tmp_path / "encoder.pt")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
