"""Small datasets in MAGMA's format, of random pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_dataset(root: Path, records: Sequence[dict[str, Any]], rng: np.random.Generator) -> Path:
    """A dataset whose samples are numbered; each has a picture of its own, patches of colour."""
    for folder in ("images/0", "image_data/0"):
        (root / folder).mkdir(parents=True)
    for number, record in enumerate(records):
        patches = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        pixels = np.kron(patches, np.ones((16, 16, 1), np.uint8))
        name = f"images/0/{number}.png"
        Image.fromarray(pixels).save(root / name)
        text = json.dumps({"image_path": name, **record})
        (root / f"image_data/0/{number}.json").write_text(text)
    return root


def captions(*texts: str) -> list[dict[str, Any]]:
    """A record for each caption."""
    return [{"captions": [text], "metadata": {}} for text in texts]


def question(text: str, *answers: str) -> dict[str, Any]:
    """A record of a question, as `training.sources.vqa` makes it."""
    metadata = {"question": text, "answers": list(answers)}
    return {"captions": [f"Q: {text} A: {answers[0]}"], "metadata": metadata}
