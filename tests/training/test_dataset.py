"""Datasets on disk, those of the original included, and what is said of bad ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.reference.pictures import read_picture
from training.dataset import ImgCptDataset
from utils.errors import UserError


@pytest.fixture
def root(tmp_path: Path, rng) -> Path:
    """Twelve samples as the original writes them, the last without image_path."""
    for k in range(12):
        folder = tmp_path / "image_data" / "0"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "0").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 50 + k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "0" / f"{k}.jpg")
        record = {"captions": [f"caption {k}"], "metadata": {"image_hash": "x"}}
        if k < 11:
            record["image_path"] = f"images/0/{k}.jpg"
        (folder / f"{k}.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("in_memory", [False, True])
def test_reads_what_the_original_writes(root: Path, tokenizer, in_memory):
    dataset = ImgCptDataset(root, tokenizer, 32, 16, load_data_in_memory=in_memory)
    assert len(dataset) == 12
    for k in (0, 5, 11):
        ids, pixels = dataset.sample(k, random.Random(0))
        assert tokenizer.decode(ids) == f"caption {k}"
        assert torch.equal(pixels, read_picture(root / "images" / "0" / f"{k}.jpg", 32))


def test_samples_of_one_picture_say_so(root: Path, tokenizer):
    record = {"captions": ["another"], "image_path": "images/0/./3.jpg"}
    (root / "image_data" / "0" / "12.json").write_text(json.dumps(record))
    dataset = ImgCptDataset(root, tokenizer, 32, 16)
    pictures = [dataset.picture(k) for k in range(13)]
    assert pictures[12] == pictures[3]
    assert len(set(pictures)) == 12


def test_items_are_padded_as_the_original_s(root: Path, tokenizer):
    pixels, ids = ImgCptDataset(root, tokenizer, 32, 16)[3]
    assert pixels.shape == (1, 3, 32, 32)
    assert ids.shape == (1, 16)
    text = tokenizer.encode("caption 3")
    assert ids[0, : len(text)].tolist() == text
    assert (ids[0, len(text) :] == tokenizer.eos_token_id).all()


def test_transforms_of_one_s_own(root: Path, tokenizer):
    dataset = ImgCptDataset(root, tokenizer, lambda image: torch.full((1, 3, 2, 2), image.width))
    assert dataset.sample(7, random.Random(0)).pixels[0, 0, 0, 0] == 57


def test_long_captions_are_cut(root: Path, tokenizer):
    record = {"captions": ["many words " * 40], "image_path": "images/0/0.jpg"}
    (root / "image_data" / "0" / "0.json").write_text(json.dumps(record))
    dataset = ImgCptDataset(root, tokenizer, 32, 16)
    assert len(dataset.sample(0, random.Random(0)).ids) == 16
    assert dataset[0][1].shape == (1, 16)


BAD = [
    ("{", "malformed JSON"),
    ("[" * 100_000, "malformed JSON"),
    ("\udcff", "malformed JSON"),
    ("[]", 'no "captions"'),
    ('{"captions": []}', 'no "captions"'),
    ('{"captions": {"a": "b"}}', 'no "captions"'),
    ('{"captions": [null]}', "no text"),
    ('{"captions": ["\\ud800"]}', "text that is not valid"),
    ('{"captions": ["a"], "image_path": 3}', "is no text"),
    ('{"captions": ["a"], "image_path": "../x.jpg"}', "leads out of the dataset"),
    ('{"captions": ["a"], "image_path": "/etc/passwd"}', "leads out of the dataset"),
    ('{"captions": ["a"], "image_path": "images/0/none.jpg"}', "none.jpg is missing"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_bad_samples_are_counted_named_and_skipped_on_demand(
    root: Path, tokenizer, text, message, caplog
):
    path = root / "image_data" / "0" / "4.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="1 of 12 samples are bad") as caught:
        ImgCptDataset(root, tokenizer, 32, 16)
    assert message in str(caught.value)
    assert "4.json" in str(caught.value)
    dataset = ImgCptDataset(root, tokenizer, 32, 16, skip_bad=True)
    assert len(dataset) == 11
    assert len(dataset.bad) == 1
    assert "4.json" in caplog.text


def test_a_broken_picture_is_named(root: Path, tokenizer):
    (root / "images" / "0" / "2.jpg").write_bytes(b"no picture")
    dataset = ImgCptDataset(root, tokenizer, 32, 16)
    with pytest.raises(UserError, match=r"2\.json: .*2\.jpg: is no picture"):
        dataset.sample(2, random.Random(0))


def test_no_dataset_and_an_empty_one(tmp_path: Path, tokenizer):
    with pytest.raises(UserError, match="the folder image_data is missing"):
        ImgCptDataset(tmp_path, tokenizer, 32)
    (tmp_path / "image_data").mkdir()
    with pytest.raises(UserError, match="the dataset is empty"):
        ImgCptDataset(tmp_path, tokenizer, 32)


def test_nothing_left_after_skipping(root: Path, tokenizer):
    for path in (root / "images" / "0").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="12 of 12 samples are bad; nothing is left"):
        ImgCptDataset(root, tokenizer, 32, skip_bad=True)
