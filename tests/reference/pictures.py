"""CLIP's preprocessing as its authors give it: Pillow's bicubic resize, centre crop, normalise."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def read_picture(path: Path | str, side: int) -> torch.Tensor:
    """Pixels of a picture file, [1, 3, side, side]."""
    with Image.open(path) as image:
        width, height = image.size
        short = min(width, height)
        scaled = image.resize((width * side // short, height * side // short), Image.BICUBIC)
    left, top = round((scaled.width - side) / 2), round((scaled.height - side) / 2)
    rgb = scaled.crop((left, top, left + side, top + side)).convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    planes = pixels.reshape(side, side, 3).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((planes - mean) / std)[None]
