"""From a picture file, a prompt and a checkpoint file to text, as a notebook would: the same text
as the PyTorch model's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.parsing import load_preset
from run_inference import init_inference_session, run_inference
from tests.reference.magma import ReferenceMagma
from tests.reference.pictures import read_picture
from utils.checkpoint import write_random_checkpoint

PROMPTS = ("A picture of", "Q: What is this? A:", "")
PICTURES = {"wide.png": (90, 70), "tall.jpg": (64, 101)}
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file and two picture files that no test of another module has seen."""
    folder = tmp_path_factory.mktemp("text")
    write_random_checkpoint(folder / "model.pt", load_preset("tiny"), seed=21, dtype="float32")
    rng = np.random.default_rng(22)
    for name, size in PICTURES.items():
        patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        patches.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path):
    session, config, tokenizer = init_inference_session("tiny", folder / "model.pt")
    yield session, config, tokenizer
    session.__exit__(None, None, None)


def our_text(folder: Path, opened, picture: str, prompt: str) -> str:
    session, config, tokenizer = opened
    return run_inference(
        session,
        config,
        tokenizer,
        str(folder / picture),
        prompt,
        seed=0,
        temperature=0,
        max_out_tokens=NEW_TOKENS,
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("picture", PICTURES)
def test_text_equals_the_references(folder, opened, picture, prompt):
    _, config, tokenizer = opened
    reference = ReferenceMagma.from_checkpoint(folder / "model.pt", config)
    ids = torch.tensor([tokenizer.encode(prompt)], dtype=torch.int64)
    pixels = read_picture(folder / picture, config.visual.image_resolution)
    chosen = reference.greedy(pixels, ids, NEW_TOKENS)[0].tolist()
    if tokenizer.eos_token_id in chosen:
        chosen = chosen[: chosen.index(tokenizer.eos_token_id)]
    expected = tokenizer.decode(chosen, skip_special_tokens=True)
    assert our_text(folder, opened, picture, prompt) == expected


def test_text_depends_on_picture_and_prompt(folder, opened):
    """Equal texts for everything would make the test above easy."""
    texts = {(pic, ask): our_text(folder, opened, pic, ask) for pic in PICTURES for ask in PROMPTS}
    wide, tall = PICTURES
    assert any(texts[wide, ask] != texts[tall, ask] for ask in PROMPTS)
    assert len({texts[wide, ask] for ask in PROMPTS}) > 1
