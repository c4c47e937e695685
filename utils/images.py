"""Pictures: loading from untrusted files and addresses, and CLIP's preprocessing.

`preprocess` follows the order of the original, on which parity rests: resize, crop, *then* convert
to RGB. So palette and 1-bit pictures are resized without interpolation, transparency is dropped
rather than laid on a background (what resizing leaves of a clear area is black), 16-bit grey
saturates at 255, and EXIF rotation is not applied.
``load_image(..., friendly=True)`` mends those before; animated files give their first frame.
"""

from __future__ import annotations

import os
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.download import fetch_url
from utils.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics per channel of pixels in 0..1."""

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused, before and after resizing (256 MiB at 3 bytes each)."""

# Decoders that only decode: Pillow's others may start programs (EPS) or are rare and little tested.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO"),
    *("JPEG2000", "AVIF", "PCX"),
)


class ImageInput:
    """A picture in a prompt: marks a path or an address as one, beside text.

    It is read when it is used, so that a list may hold ones that cannot be read.
    """

    def __init__(self, path_or_url: str | os.PathLike[str]) -> None:
        """Keeps the name only."""
        self.source = os.fspath(path_or_url)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"ImageInput({self.source!r})"

    def load(self) -> Image.Image:
        """The picture; see :func:`load_image`."""
        return load_image(self.source)


def load_image(source: str | os.PathLike[str], friendly: bool = False) -> Image.Image:
    """A picture from a file or an http or https address, fully decoded.

    Args:
        source: path or address.
        friendly: apply EXIF rotation, lay transparency on white, scale 16 bits to 8, and return
            RGB; by default the picture stays as stored.

    Raises:
        UserError: missing, a folder, unreadable, unreachable, too large, damaged or no picture.
    """
    text = os.fspath(source)
    if not text:
        raise UserError("the name of the picture is empty; expected a path or an address")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", text):
        image = decode_image(text, BytesIO(fetch_url(text)))
    else:
        path = Path(text)
        try:
            if path.is_dir():
                raise UserError(f"{text}: is a folder; expected a picture")
            if path.exists() and not path.is_file():
                raise UserError(f"{text}: is not a regular file; expected a picture")
            with path.open("rb") as file:
                image = decode_image(text, file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{text}: cannot read the picture: {reason}") from error
    return _mend(image) if friendly else image


def decode_image(source: str, file: IO[bytes]) -> Image.Image:
    """A picture from an open file, fully decoded.

    Args:
        source: what errors call it.
        file: binary, seekable.

    Raises:
        UserError: too large, damaged or no picture.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about oddities of files; its own warning about bombs is our error.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_supported_formats()) as image:
                _require_pixels(source, *image.size)
                image.load()
                return image.copy()
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{source}: the picture is too large: at most {MAX_PIXELS:,} pixels in all; scale it "
            "down"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{source}: is no picture that can be read; expected JPEG, PNG, WebP, GIF, TIFF or BMP"
        ) from error
    except Exception as error:  # decoders raise many types on damaged data
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{source}: the picture is damaged or cut short ({reason})") from error


def _supported_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _require_pixels(source: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{source}: the picture is too large: {width} × {height} pixels, at most "
            f"{MAX_PIXELS:,} in all; scale it down"
        )


def _mend(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((grey / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def preprocess(image: Image.Image, resolution: int = 384) -> npt.NDArray[np.float32]:
    """CLIP's preprocessing, equal to torchvision's bit for bit.

    Args:
        image: a picture of any mode.
        resolution: side of the square result, in pixels.

    Returns:
        (1, 3, resolution, resolution) float32: normalised red, green and blue planes.

    Raises:
        UserError: it has no pixels, or is so long and narrow that resizing it would need too much
            memory.
    """
    if 0 in image.size:
        raise UserError(f"the picture has no pixels: its size is {image.size}")
    size = _resized(image.size, resolution)
    if size[0] * size[1] > MAX_PIXELS:
        width, height = image.size
        raise UserError(
            f"the picture is too long and narrow: {width} × {height} pixels; crop it so that "
            f"its longer side is at most {MAX_PIXELS // resolution**2} times the shorter"
        )
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - resolution) / 2) for side in size)  # half to even
    cropped = resized.crop((left, top, left + resolution, top + resolution))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow suggests RGBA for palettes with transparency
        pixels = np.asarray(cropped.convert("RGB"))
    planes = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean = np.array(MEAN, np.float32)[:, None, None]
    std = np.array(STD, np.float32)[:, None, None]
    return np.ascontiguousarray((planes - mean) / std)[None]


def _resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Sizes with the shorter side at ``resolution`` and the longer one cut to whole pixels."""
    width, height = size
    if width <= height:
        return resolution, int(resolution * height / width)
    return int(resolution * width / height), resolution
