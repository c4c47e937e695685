"""Pictures of a split with their captions, drawn once and kept in a file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm
from transformers import GPT2Tokenizer

from training.samples import Sample
from training.world.captions import caption
from training.world.documents import Writer
from training.world.pictures import draw
from training.world.scenes import Scene, random_scene
from utils.images import preprocess

_LARGE = 4  # one picture in so many is drawn at twice the size, as users' pictures are larger


class Album:
    """A dataset of pictures and captions, in the form that `training.loop.Trainer` takes.

    Attributes:
        scenes: what each picture shows.
    """

    def __init__(
        self, file: Path, tokenizer: GPT2Tokenizer, split: str, count: int, seed: int, side: int
    ) -> None:
        """Draws the pictures, or maps the file of an earlier run with the same arguments.

        Args:
            file: where the pictures are kept, a ``.npy`` of count × side × side × 3 bytes.
            tokenizer: the world's.
            split: see `training.world.scenes.SPLITS`.
            count: number of pictures.
            seed: another seed gives other pictures.
            side: pixels along one side.
        """
        self._writer = Writer(tokenizer)
        self._side = side
        rngs = [np.random.default_rng([seed, i]) for i in range(count)]
        self.scenes: list[Scene] = [random_scene(rng, split) for rng in rngs]
        if not file.is_file():
            self._draw(file, rngs)
        self.pictures: npt.NDArray[np.uint8] = np.load(file, mmap_mode="r")
        assert self.pictures.shape == (count, side, side, 3), f"{file} is of another album"

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.scenes)

    def name(self, index: int) -> str:
        """The picture's number."""
        return f"picture {index}"

    def sample(self, index: int, rng: random.Random) -> Sample:
        """A picture and its caption's ids."""
        return Sample(self._writer.encode(caption(self.scenes[index])), self.pixels([index]))

    def pixels(self, indices: list[int]) -> torch.Tensor:
        """Some pictures as the encoder takes them: [b, 3, y, x]."""
        pictures = [Image.fromarray(self.pictures[i]) for i in indices]
        return torch.from_numpy(np.concatenate([preprocess(p, self._side) for p in pictures]))

    def _draw(self, file: Path, rngs: list[np.random.Generator]) -> None:
        partial = file.with_suffix(".part")
        shape = (len(self), self._side, self._side, 3)
        pictures = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        numbered = enumerate(zip(self.scenes, rngs, strict=True))
        for i, (scene, rng) in tqdm(numbered, "drawing", len(self), unit="picture", disable=None):
            factor = 2 if i % _LARGE == 0 else 1
            pictures[i] = draw_reduced(scene, rng, self._side, factor)
        pictures.flush()
        partial.replace(file)


def draw_reduced(
    scene: Scene, rng: np.random.Generator, side: int, factor: int
) -> npt.NDArray[np.uint8]:
    """A picture drawn ``factor`` times as large as wanted, then brought to (side, side, 3)."""
    picture = draw(scene, rng, factor * side)
    if factor == 1:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
