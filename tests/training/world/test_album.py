"""Albums: drawn once, the same each time, with captions that say what is in the picture."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image

from training.world.album import Album
from training.world.captions import parse_caption
from training.world.scenes import split_of
from utils.images import preprocess
from utils.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("models/world")


def album(file: Path) -> Album:
    """Nine pictures of 32 pixels."""
    return Album(file, TOKENIZER, "held_out", 9, seed=3, side=32)


def test_the_file_is_drawn_once_and_mapped_again(tmp_path: Path):
    first = album(tmp_path / "a.npy")
    written = (tmp_path / "a.npy").stat().st_mtime_ns
    second, other = album(tmp_path / "a.npy"), album(tmp_path / "b.npy")
    assert (tmp_path / "a.npy").stat().st_mtime_ns == written
    assert first.scenes == second.scenes == other.scenes
    assert (first.pictures == other.pictures).all()


def test_samples_are_pictures_with_a_caption_of_their_scene(tmp_path: Path):
    pictures = album(tmp_path / "a.npy")
    assert len(pictures) == 9
    for index, scene in enumerate(pictures.scenes):
        sample = pictures.sample(index, random.Random(index))
        assert split_of(scene) == "held_out"
        assert parse_caption(TOKENIZER.decode(sample.ids)) == scene
        expected = preprocess(Image.fromarray(pictures.pictures[index]), 32)
        assert torch.equal(sample.pixels, torch.from_numpy(expected))
