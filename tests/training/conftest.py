"""What the tests of training share: a tokenizer, pictures with captions, short runs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from config.config import MagmaConfig
from config.parsing import load_preset
from tests.reference.torchvision_shim import make_torchvision_importable

make_torchvision_importable()

from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer  # noqa: E402

WORDS = ("a", "red", "cat", "sits", "under", "two", "blue", "trees", "near", "green", "lake")


@pytest.fixture(scope="session")
def tokenizer():
    """The small tokenizer of models/tiny."""
    return load_tokenizer(SMALL_TOKENIZER)


@pytest.fixture
def model_config() -> MagmaConfig:
    """The preset tiny, whose vocabulary is the small tokenizer's."""
    return load_preset("tiny")


@pytest.fixture
def pairs(rng: np.random.Generator) -> list[tuple[Image.Image, str]]:
    """Eight pictures of random coloured fields; captions differ from the second word on."""
    fields = rng.integers(0, 256, (8, 3, 3, 3), dtype=np.uint8)
    pictures = [Image.fromarray(f).resize((60, 50), Image.Resampling.NEAREST) for f in fields]
    texts = [" ".join(["a", word, *rng.choice(WORDS, 3)]) for word in WORDS[1:9]]
    return list(zip(pictures, texts, strict=True))
