"""Cut the world's pictures out of the Noto Color Emoji font.

    python -m training.world.make_emoji NotoColorEmoji.ttf

The font is in Debian's package fonts-noto-color-emoji. The pictures it yields are part of this
repository, under the font's licence, so this runs only when a kind is added.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.world.kinds import KINDS

FOLDER = Path(__file__).parent / "emoji"
FONT_SIZE = 109
"""The one size in which the font has its pictures."""

_LETTERS = {
    **{"dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "elephant": "🐘"},
    **{"fish": "🐟", "whale": "🐋", "bird": "🐦", "owl": "🦉", "butterfly": "🦋", "bee": "🐝"},
    **{"banana": "🍌", "apple": "🍎", "lemon": "🍋", "strawberry": "🍓", "pineapple": "🍍"},
    **{"car": "🚗", "bus": "🚌", "bicycle": "🚲", "plane": "✈", "helicopter": "🚁", "boat": "⛵"},
    **{"ball": "⚽", "guitar": "🎸", "house": "🏠", "key": "🔑", "clock": "⏰"},
}


def cut(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """The picture of one emoji, RGBA, cropped to what is visible."""
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((0, 0), letter, font=font, embedded_color=True)
    return image.crop(image.getbbox())


def main(font_file: str) -> None:
    """Write one PNG for each kind."""
    font = ImageFont.truetype(font_file, FONT_SIZE)
    for kind in KINDS:
        cut(font, _LETTERS[kind]).save(FOLDER / f"{kind}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
