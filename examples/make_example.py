"""Renders ``lake_cabin.jpg``: a red cabin at a mountain lake, made from noise and gradients alone.

The picture is ours and free of anybody's rights, and looks enough like a photograph for CLIP's
encoder. Every run gives the same picture::

    python examples/make_example.py examples/lake_cabin.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Field = npt.NDArray[np.float64]  # (y, x), or (y, x, 3) for colours, in 0..1

WIDTH, HEIGHT = 1440, 1080  # rendered, then halved in area for smooth edges
SHORE = 640  # row where the far land meets the water
SUN = (330.0, 400.0)  # x, y
SEED = 2026


def main(path: str) -> None:
    """Renders the scene and saves it as JPEG."""
    rng = np.random.default_rng(SEED)
    scene = sky(rng)
    for ridge in RIDGES:
        scene = mountains(scene, rng, *ridge)
    scene = meadow(scene, rng)
    scene = forest(scene, rng)
    scene = cabin(scene, rng)
    scene = lake(scene, rng)
    scene = bank(scene, rng)
    picture = develop(scene, rng)
    picture.save(path, quality=86, optimize=True, progressive=True)


# ---- noise and mixing ---------------------------------------------------------------------------


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Field:
    """Random numbers on a coarse grid, interpolated to the picture: about 0..1."""
    grid = Image.fromarray(rng.random((max(rows, 2), max(columns, 2))).astype(np.float32))
    return np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)


def fractal(rng: np.random.Generator, rows: float, columns: float, octaves: int = 6) -> Field:
    """Noise with equal roughness at all scales, stretched to 0..1."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(octaves):
        scale = 2**octave
        total += smooth_noise(rng, int(rows * scale), int(columns * scale)) / scale
    return (total - total.min()) / np.ptp(total)


def colour(red: int, green: int, blue: int) -> Field:
    """A colour of eight bits a channel."""
    return np.array([red, green, blue]) / 255


def mix(first: Field, second: Field, share: Field | float) -> Field:
    """Colours between ``first`` and ``second``; ``share`` of the second, per pixel."""
    weight = np.asarray(share)
    weight = weight[..., None] if weight.ndim == 2 else weight
    return first * (1 - weight) + second * weight


def blurred(image: Field, radius: float) -> Field:
    """Gaussian blur of colours."""
    return as_field(as_picture(image).filter(ImageFilter.GaussianBlur(radius)))


def as_picture(image: Field) -> Image.Image:
    """Colours as a picture of eight bits."""
    return Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))


def as_field(picture: Image.Image) -> Field:
    """A picture's numbers in 0..1."""
    return np.asarray(picture, dtype=np.float64) / 255


def mask_of(draw_on: Image.Image, radius: float = 0.7) -> Field:
    """A drawn mask with soft edges."""
    return as_field(draw_on.filter(ImageFilter.GaussianBlur(radius)))


Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)

# ---- the scene, from far to near ----------------------------------------------------------------


def sky(rng: np.random.Generator) -> Field:
    """Evening sky with a low sun and streaks of cloud."""
    height = (Y / SHORE).clip(0, 1)
    image = mix(colour(62, 105, 168)[None, None], colour(168, 196, 222), height**0.8)
    image = mix(image, colour(250, 214, 170), (height - 0.35).clip(0, 1) ** 1.3)
    distance = np.hypot((X - SUN[0]) / 1.4, Y - SUN[1])
    image = mix(image, colour(255, 226, 170), 0.75 * np.exp(-distance / 170))
    streaks = fractal(rng, 7, 3)
    puffs = fractal(rng, 9, 6)
    cover = ((streaks * 0.6 + puffs * 0.6 - 0.58) * 3.2).clip(0, 1) * (1 - 0.5 * height)
    lit = mix(colour(206, 196, 204)[None, None], colour(255, 240, 222), (puffs * 1.3).clip(0, 1))
    return mix(image, lit, cover * 0.85)


# rows of the crest, height of its peaks, bumps across, haze, snow line
RIDGES = (
    (400.0, 300.0, 3.2, 0.62, 330.0),
    (480.0, 210.0, 4.4, 0.40, 345.0),
    (575.0, 120.0, 5.5, 0.20, 0.0),
)


def mountains(
    image: Field,
    rng: np.random.Generator,
    crest_row: float,
    peak: float,
    bumps: float,
    haze: float,
    snow_row: float,
) -> Field:
    """One ridge: light from the left, snow above a row, the more haze the farther."""
    line = fractal(rng, 2, bumps, octaves=8)[HEIGHT // 2]
    line = (line - line.min()) / np.ptp(line)
    crest = crest_row + 60 - peak * line
    relief = fractal(rng, 9, 11, octaves=7)
    folds = np.gradient(relief + 0.0022 * (crest - Y), axis=1) * 60
    light = (0.5 + folds + 0.15 * (relief - 0.5)).clip(0.05, 1)
    rock = mix(colour(58, 62, 72)[None, None], colour(150, 136, 122), light)
    trees = mix(colour(24, 42, 34)[None, None], colour(76, 98, 62), light)
    tree_line = ((Y - crest_row - 20 + 70 * (relief - 0.5)) / 40).clip(0, 1)
    ground = mix(rock, trees, tree_line)
    snow = mix(colour(120, 140, 175)[None, None], colour(255, 250, 244), light**0.7)
    ground = mix(ground, snow, ((snow_row - Y + 170 * (relief - 0.45)) / 22).clip(0, 1))
    ground = mix(ground, colour(176, 190, 208), haze * (0.75 + 0.25 * (Y / SHORE).clip(0, 1)))
    return mix(image, ground, (Y - crest[None]).clip(0, 1))


def meadow(image: Field, rng: np.random.Generator) -> Field:
    """The strip of grass along the far shore, higher on the right where the cabin stands."""
    rise = 30 + 62 / (1 + np.exp(-(X - 800) / 110)) + 6 * fractal(rng, 2, 14)
    top = SHORE - rise
    texture = fractal(rng, 90, 60, octaves=4)
    grass = mix(colour(66, 84, 36)[None, None], colour(164, 158, 84), texture)
    grass = mix(grass, colour(84, 76, 58), ((Y - SHORE + 12 + 8 * texture) / 10).clip(0, 1))
    return mix(image, grass, (Y - top).clip(0, 1))


def forest(image: Field, rng: np.random.Generator) -> Field:
    """Spruces along the shore: the nearer, the taller and darker."""
    for depth, (count, size) in enumerate(((150, 46), (110, 70), (60, 104))):
        for _ in range(count):
            x = rng.choice([rng.uniform(-20, 760), rng.uniform(1190, WIDTH + 20)])
            if depth == 2 and 420 < x < 1200:
                continue
            foot = SHORE - 14 + 5 * depth - (64 if x > 900 else 8) * rng.uniform(0.4, 1)
            image = spruce(image, rng, x, foot, size * rng.uniform(0.65, 1.25), depth)
    return image


def spruce(
    image: Field, rng: np.random.Generator, x: float, foot: float, size: float, depth: int
) -> Field:
    """One tree, as jagged tiers of branches, lit from the left."""
    left, right = int(max(x - size / 2, 0)), int(min(x + size / 2, WIDTH))
    top, bottom = int(foot - size * 1.5), int(min(foot + 4, HEIGHT))
    if right - left < 2:
        return image
    canvas = Image.new("L", (right - left, bottom - top))
    draw = ImageDraw.Draw(canvas)
    tiers = 11
    for tier in range(tiers):
        y = foot - top - size * 1.45 * (1 - tier / tiers)
        half = size * 0.27 * (0.12 + tier / tiers) * rng.uniform(0.75, 1.2)
        droop = size * 0.2
        centre = x - left + rng.uniform(-1, 1)
        points = [(centre, y), (centre + half, y + droop), (centre - half, y + droop * 1.05)]
        draw.polygon(points, fill=255)
    draw.rectangle((x - left - 1.5, foot - top - 8, x - left + 1.5, foot - top + 3), fill=255)
    mask = mask_of(canvas)
    side = ((x - X[top:bottom, left:right]) / (size * 0.3)).clip(-1, 1) * 0.5 + 0.5
    grain = rng.random(mask.shape)
    dark = colour(22, 38, 28) + 0.06 * (2 - depth)
    tree = mix(dark[None, None], colour(112, 126, 66), 0.75 * side * (0.45 + 0.55 * grain))
    result = image.copy()
    result[top:bottom, left:right] = mix(image[top:bottom, left:right], tree, mask)
    return result


# Corners of the cabin, clockwise from the upper left.
FRONT = [(880, 500), (1000, 500), (1000, 588), (880, 588)]
GABLE = [(872, 502), (940, 436), (1008, 502)]
SIDE = [(1000, 500), (1140, 508), (1140, 580), (1000, 588)]
ROOF = [(934, 430), (1086, 446), (1156, 512), (1006, 506)]
CHIMNEY = [(1040, 412), (1062, 414), (1062, 462), (1040, 458)]


def cabin(image: Field, rng: np.random.Generator) -> Field:
    """A red wooden cabin with white trim, its gable towards us, its long side in the shade."""
    boards = 0.86 + 0.14 * (np.sin(X * 0.9) > -0.75) + 0.10 * (fractal(rng, 8, 160, 3) - 0.5)
    red = boards[..., None] * colour(186, 46, 34)
    slates = 0.9 + 0.2 * (fractal(rng, 120, 90, 3) - 0.5) + 0.06 * np.sin(Y * 1.1)
    roof = slates[..., None] * colour(74, 70, 74)
    white, shade = colour(238, 232, 220)[None, None], colour(196, 190, 188)[None, None]
    glass = mix(colour(38, 48, 62)[None, None], colour(206, 190, 150), ((600 - Y) / 160).clip(0, 1))
    stone = (0.7 + 0.6 * fractal(rng, 120, 160, 3))[..., None] * colour(120, 112, 106)
    contact = ((X - 1010) / 190) ** 2 + ((Y - 590) / 13) ** 2
    image = mix(image, image * 0.45, np.exp(-contact))
    parts = [
        (CHIMNEY, stone),
        (GABLE, red),
        (FRONT, red),
        (SIDE, red * 0.62),
        ([(874, 586), (1004, 586), (1004, 594), (874, 594)], stone),
        ([(1000, 586), (1142, 578), (1142, 586), (1000, 594)], stone * 0.7),
        (ROOF, roof),
    ]
    for points, paint in parts:
        image = fill(image, points, paint)
    for x in (892, 966):
        image = window(image, x, 520, 24, 34, white, glass)
    image = window(image, 931, 464, 18, 20, white, glass)
    image = fill(image, box(926, 524, 30, 64), white)
    image = fill(image, box(930, 528, 22, 60), colour(70, 92, 84)[None, None])
    for x in (1030, 1088):
        image = window(image, x, 524, 26, 30, shade, glass * 0.8)
    for start, end in (
        ((866, 508), (940, 434)),
        ((940, 434), (1012, 508)),
        ((1006, 507), (1156, 513)),
    ):
        image = stroke(image, start, end, 5, white)
    for x in (882, 998):
        image = stroke(image, (x, 502), (x, 586), 4, white)
    return image


def box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """Corners of an upright rectangle."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def window(
    image: Field, x: float, y: float, width: float, height: float, frame: Field, glass: Field
) -> Field:
    """A window of four panes."""
    image = fill(image, box(x - 3, y - 3, width + 6, height + 6), frame)
    image = fill(image, box(x, y, width, height), glass)
    image = stroke(image, (x + width / 2, y), (x + width / 2, y + height), 2, frame)
    return stroke(image, (x, y + height / 2), (x + width, y + height / 2), 2, frame)


def fill(image: Field, points: list[tuple[float, float]], paint: Field) -> Field:
    """A painted polygon."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return mix(image, paint, mask_of(canvas))


def stroke(
    image: Field,
    start: tuple[float, float],
    end: tuple[float, float],
    width: int,
    paint: Field,
) -> Field:
    """A painted line."""
    canvas = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(canvas).line([start, end], fill=255, width=width)
    return mix(image, paint, mask_of(canvas))


def lake(image: Field, rng: np.random.Generator) -> Field:
    """Water that mirrors the land: broken by ripples that grow towards us, and blue with depth."""
    near = ((Y - SHORE) / (HEIGHT - SHORE)).clip(0, 1)
    ripples = fractal(rng, 150, 9, 5) - 0.5
    swell = fractal(rng, 50, 4, 4) - 0.5
    shift_y = (46 * near + 3) * (0.7 * ripples + 0.6 * swell)
    shift_x = (26 * near + 2) * swell
    rows = (2 * SHORE - Y + shift_y).clip(0, SHORE - 1).astype(int)
    columns = (X + shift_x).clip(0, WIDTH - 1).astype(int)
    mirror = blurred(image, 2.2)[rows, columns]
    water = mix(mirror * 0.86, colour(26, 58, 82), 0.20 + 0.38 * near)
    slope = np.gradient(ripples + 0.5 * swell, axis=0) * 6
    water = water + (slope * (0.2 + 0.7 * near))[..., None] * colour(150, 170, 190)
    glitter = np.exp(-(((X - SUN[0]) / (55 + 190 * near)) ** 2)) * (slope + ripples > 0.13)
    water = mix(water, colour(255, 232, 190), 0.55 * glitter * (1 - 0.45 * near))
    return mix(image, water, ((Y - SHORE) / 2).clip(0, 1))


def bank(image: Field, rng: np.random.Generator) -> Field:
    """Stones and grass in the foreground, out of the sun."""
    edge = HEIGHT - 70 - 120 * np.exp(-(((X - 1330) / 300) ** 2)) + 26 * fractal(rng, 2, 9)
    edge += 55 * ((X - 520) / 520).clip(-1, 1) ** 2 * (X < 900)
    soil = mix(colour(44, 40, 28)[None, None], colour(112, 104, 62), fractal(rng, 70, 90, 5))
    image = mix(image, soil, ((Y - edge) / 3).clip(0, 1))
    for _ in range(46):
        x = int(rng.uniform(0, WIDTH))
        y = edge[0, x] + rng.uniform(-8, 70)
        image = stone(image, rng, x, y, rng.uniform(9, 34))
    return grass(image, rng, edge[0])


def stone(image: Field, rng: np.random.Generator, x: float, y: float, size: float) -> Field:
    """A flat rounded stone, lit from above left."""
    dx, dy = (X - x) / size, (Y - y) / (size * 0.55)
    radius = dx**2 + dy**2
    light = (0.5 - 0.28 * dx - 0.42 * dy).clip(0.12, 1) * rng.uniform(0.7, 1.1)
    surface = (
        light[..., None] * colour(172, 160, 148) * (0.85 + 0.3 * rng.random((HEIGHT, WIDTH, 1)))
    )
    return mix(image, surface, ((1 - radius) * 6).clip(0, 1))


def grass(image: Field, rng: np.random.Generator, edge: Field) -> Field:
    """Blades of grass along the bank."""
    picture = as_picture(image)
    draw = ImageDraw.Draw(picture)
    for _ in range(5200):
        x = rng.uniform(0, WIDTH)
        foot = edge[int(x)] + rng.uniform(0, 1) ** 0.7 * 170
        length = rng.uniform(14, 46) * (0.6 + 0.5 * (foot - edge[int(x)]) / 100)
        bend = rng.uniform(-0.45, 0.6) * length
        tone = mix(colour(34, 46, 18), colour(172, 166, 84), rng.random() ** 1.5)
        fill_colour = tuple(int(v * 255) for v in tone)
        tip = (x + bend, foot - length)
        draw.line([(x, foot), (x + bend * 0.35, foot - length * 0.6), tip], fill_colour, 2)
    return as_field(picture)


def develop(image: Field, rng: np.random.Generator) -> Image.Image:
    """What a camera adds: glow, contrast, vignette, a little softness, grain."""
    glow = blurred((image - 0.72).clip(0, 1), 24)
    image = image + 0.35 * glow
    image = image * (1.0 - 0.30 * (np.hypot(X / WIDTH - 0.5, Y / HEIGHT - 0.5) ** 2)[..., None])
    image = mix(image, image**2 * (3 - 2 * image), 0.35)
    picture = as_picture(image).filter(ImageFilter.GaussianBlur(0.8))
    picture = picture.resize((WIDTH * 2 // 3, HEIGHT * 2 // 3), Image.Resampling.LANCZOS)
    noise = rng.normal(0, 1, (*picture.size[::-1], 1)) + rng.normal(
        0, 0.4, (*picture.size[::-1], 3)
    )
    return as_picture(as_field(picture) + 0.010 * noise)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "lake_cabin.jpg"))
