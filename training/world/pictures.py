"""Draws a scene: emoji of random place, size and turn on a random background, with noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.world.kinds import PLACES
from training.world.scenes import Scene

EMOJI = Path(__file__).parent / "emoji"

_MAX_TURN = 15  # degrees
_MAX_NOISE = 8.0  # standard deviation, of 255
_ASLANT = 0.7  # groups stand at most so much across, for each step along
_TRIES = 200

# Two colours from top to bottom, and how strongly patches of light and dark lie on them.
_GROUNDS = {
    "grass": ((126, 186, 92), (78, 140, 58), 22.0),
    "snow": ((222, 232, 244), (246, 248, 252), 10.0),
    "sand": ((236, 214, 160), (214, 182, 120), 16.0),
    "night": ((18, 22, 58), (46, 44, 84), 8.0),
    "sea": ((70, 160, 200), (28, 98, 160), 16.0),
}
assert _GROUNDS.keys() == PLACES.keys()


@dataclass(frozen=True)
class Thing:
    """One emoji in a picture; lengths are shares of its side.

    Attributes:
        kind: key of KINDS.
        x: centre from the left.
        y: centre from the top.
        size: longest side.
    """

    kind: str
    x: float
    y: float
    size: float


def draw(scene: Scene, rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """A random picture of a scene.

    Args:
        scene: what to show.
        rng: source of randomness.
        side: pixels along one side.

    Returns:
        (side, side, 3) uint8: red, green, blue.
    """
    picture = Image.fromarray(_ground(scene.place, rng, side))
    for thing in arrange(scene, rng):
        emoji = _posed(thing, rng, side)
        corner = (round(thing.x * side - emoji.width / 2), round(thing.y * side - emoji.height / 2))
        picture.paste(emoji, corner, emoji)
    pixels = np.asarray(picture, np.float32) * rng.uniform(0.85, 1.1)
    grain = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, _MAX_NOISE))
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def arrange(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """Where things stand: apart from each other, groups as the relation says and not aslant."""
    while True:
        total = sum(group.count for group in scene.groups)
        largest = 0.32 if total <= 3 else 0.25 if total <= 6 else 0.22
        kinds = [group.kind for group in scene.groups for _ in range(group.count)]
        split = rng.uniform(0.4, 0.6) if scene.second is not None else 1.0
        placed: list[Thing] = []
        for i, kind in enumerate(kinds):
            low, high = (0.0, split) if i < scene.first.count else (split, 1.0)
            thing = _free_spot(
                kind, rng, rng.uniform(0.75, 1) * largest, (low, high), placed, scene
            )
            if thing is None:
                break
            placed.append(thing)
        if len(placed) == total and _upright(scene, placed):
            return [placed[i] for i in rng.permutation(total)]


def _free_spot(
    kind: str,
    rng: np.random.Generator,
    size: float,
    span: tuple[float, float],
    placed: list[Thing],
    scene: Scene,
) -> Thing | None:
    """A free place within ``span`` of the relation's axis; None if none was found."""
    low, high = span[0] + size / 2, span[1] - size / 2
    for _ in range(_TRIES // 10):
        along, across = rng.uniform(low, max(low, high)), rng.uniform(size / 2, 1 - size / 2)
        x, y = (across, along) if scene.relation == "above" else (along, across)
        if all(max(abs(x - t.x), abs(y - t.y)) > 0.45 * (size + t.size) for t in placed):
            return Thing(kind, x, y, size)
    return None


def _upright(scene: Scene, things: list[Thing]) -> bool:
    """Whether two groups are further apart along their relation's axis than across it."""
    if scene.second is None:
        return True
    n = scene.first.count
    centres = np.array([[t.x, t.y] for t in things])
    x, y = np.abs(centres[n:].mean(0) - centres[:n].mean(0))
    along, across = (x, y) if scene.relation == "left of" else (y, x)
    return bool(across < _ASLANT * along)


@functools.cache
def _emoji(kind: str) -> Image.Image:
    return Image.open(EMOJI / f"{kind}.png").convert("RGBA")


def _posed(thing: Thing, rng: np.random.Generator, side: int) -> Image.Image:
    """An emoji at its size in pixels, turned and perhaps mirrored."""
    image = _emoji(thing.kind)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = thing.size * side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    # Premultiplied and antialiased, then turned: the other order would blur twice.
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    angle = rng.uniform(-_MAX_TURN, _MAX_TURN)
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def _ground(place: str, rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """A background: a gradient with soft patches; stars at night, waves at sea."""
    top, bottom, strength = _GROUNDS[place]
    down = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    pixels = (1 - down) * np.array(top, np.float32) + down * np.array(bottom, np.float32)
    patches = rng.standard_normal((6, 6), np.float32) * np.float32(strength)
    soft = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.broadcast_to(pixels, (side, side, 3)) + np.asarray(soft)[:, :, None]
    if place == "night":
        stars = rng.integers(side, size=(2, 12))
        pixels[stars[0], stars[1]] = 230
    if place == "sea":
        waves = np.sin(down * rng.uniform(40, 60) + rng.uniform(0, 6))
        pixels = pixels + 10 * waves
    return np.clip(pixels, 0, 255).astype(np.uint8)
