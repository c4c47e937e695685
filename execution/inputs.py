"""What people give as pictures and prompts, in one form: prompts of pictures and ids.

Letters: y, x pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from execution.prompts import Array, Embedded, Picture
from utils.errors import UserError
from utils.images import ImageInput, load_image, preprocess
from utils.tokenizer import encode

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

ImageLike = Any
"""A path or address, an :class:`ImageInput`, a PIL image, or (y, x, 3) uint8."""

Piece = Any
"""Text, or a picture in any form but a bare string."""

_PICTURES: tuple[type, ...] = (ImageInput, Image.Image, np.ndarray, os.PathLike)


def pieces_of(images: Any, prompts: Any) -> list[list[Piece]]:
    """Prompts as lists of pieces.

    Args:
        images: None, one picture, or a list with a picture, a list of pictures or None for each
            prompt; they come before the text.
        prompts: a text or a list of them; a list that holds pictures is one prompt of pieces, a
            list of such lists several. One picture goes with all of several prompts, and one
            prompt with all of several pictures.

    Returns:
        For each prompt its pieces: texts and pictures (bare strings are text).

    Raises:
        UserError: nothing to do, lists of different lengths, or a thing that is neither.
    """
    texts = _prompts(prompts)
    pictures = _pictures_by_prompt(images)
    if not texts or not pictures:
        raise UserError(f"there is nothing to do: the list of {_what(texts)} is empty")
    if len(texts) == 1:
        texts = texts * len(pictures)
    if len(pictures) == 1:
        pictures = pictures * len(texts)
    if len(texts) != len(pictures):
        raise UserError(
            f"{len(pictures)} pictures for {len(texts)} prompts; give as many pictures as prompts, "
            "or one of either"
        )
    joined = [[*before, *text] for before, text in zip(pictures, texts, strict=True)]
    return [[_checked(piece) for piece in prompt] for prompt in joined]


def _what(texts: Sequence[object]) -> str:
    return "pictures" if texts else "prompts"


def _prompts(prompts: Any) -> list[list[Piece]]:
    if isinstance(prompts, (str, *_PICTURES)):
        return [[prompts]]
    prompts = _listed(prompts, "prompts are")
    if any(isinstance(item, _PICTURES) for item in prompts):
        return [prompts]
    return [list(item) if isinstance(item, list | tuple) else [item] for item in prompts]


def _pictures_by_prompt(images: Any) -> list[list[Piece]]:
    if images is None:
        return [[]]
    if isinstance(images, (str, *_PICTURES)):
        return [[_marked(images)]]
    return [_pictures_of(item) for item in _listed(images, "pictures are")]


def pieces_of_one(inputs: Any) -> list[Piece]:
    """One prompt as a list of pieces: a piece, or any number of them in their order.

    Raises:
        UserError: a thing that is neither text nor a picture.
    """
    if isinstance(inputs, (str, *_PICTURES)):
        return [inputs]
    return [_checked(piece) for piece in _listed(inputs, "pieces of a prompt are")]


def _listed(values: Any, what: str) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping):
        raise UserError(f"the {what} {type(values).__name__}; expected one or a list of them")
    return list(values)


def _pictures_of(item: Any) -> list[Piece]:
    """The pictures that come before one prompt's text."""
    if item is None:
        return []
    return [_marked(picture) for picture in (item if isinstance(item, list | tuple) else [item])]


def _marked(picture: Any) -> Any:
    """A picture that cannot be taken for text."""
    return ImageInput(picture) if isinstance(picture, str) else picture


def _checked(piece: Any) -> Piece:
    if not isinstance(piece, (str, *_PICTURES)):
        raise UserError(
            f"a prompt holds {type(piece).__name__}; expected text, or a picture as ImageInput, "
            "PIL image, path or array (y, x, 3) of uint8"
        )
    return piece


@dataclass(frozen=True)
class Prepared:
    """Prompts and their pictures, ready for runs.

    Attributes:
        prompts: for each its ids and pictures, numbered over all prompts; None for one that has an
            error.
        pictures: (1, 3, y, x) float32 each.
        errors: by prompt, why a picture of it cannot be used.
    """

    prompts: list[list[int | Picture | Embedded] | None]
    pictures: list[Array]
    errors: dict[int, str]

    def images(self) -> Array | None:
        """All pictures, (any number, 3, y, x); None if there are none."""
        return np.concatenate(self.pictures) if self.pictures else None


def prepare(
    prompts: Iterable[Sequence[Piece]],
    tokenizer: GPT2Tokenizer,
    resolution: int,
    skip_bad: bool = False,
) -> Prepared:
    """Reads all pictures and encodes all texts.

    Args:
        prompts: of :func:`pieces_of`.
        tokenizer: the model's.
        resolution: side of the model's pictures.
        skip_bad: whether a prompt with a picture that cannot be read is noted and left out.

    Raises:
        UserError: a picture that cannot be read (with the prompt's index), or text that is none.
    """
    prepared = Prepared([], [], {})
    pictures = _Pictures(prepared.pictures, resolution)
    for index, pieces in enumerate(prompts):
        prompt: list[int | Picture | Embedded] = []
        try:
            for piece in pieces:
                if isinstance(piece, str):
                    prompt += encode(tokenizer, piece)
                else:
                    prompt.append(Picture(pictures.number(piece)))
        except BadPictureError as error:
            message = f"picture of prompt {index}: {error}"
            if not skip_bad:
                raise UserError(message) from error
            prepared.errors[index] = message
        prepared.prompts.append(None if index in prepared.errors else prompt)
    return prepared


class BadPictureError(UserError):
    """A picture that cannot be used."""


class _Pictures:
    """Pictures that were read; the same one in several prompts is read once."""

    def __init__(self, read: list[Array], resolution: int) -> None:
        self._read, self._resolution = read, resolution
        self._numbers: dict[Any, int] = {}

    def number(self, picture: Piece) -> int:
        """The index of a picture among those read."""
        key = picture.source if isinstance(picture, ImageInput) else id(picture)
        if key not in self._numbers:
            try:
                self._read.append(preprocess(_load(picture), self._resolution))
            except UserError as error:
                raise BadPictureError(str(error)) from error
            self._numbers[key] = len(self._read) - 1
        return self._numbers[key]


def _load(picture: Piece) -> Image.Image:
    if isinstance(picture, ImageInput):
        return picture.load()
    if isinstance(picture, os.PathLike):
        return load_image(picture)
    if isinstance(picture, Image.Image):
        return _loaded(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(
            f"the array is {picture.dtype} of shape {picture.shape}; expected uint8 (y, x, 3)"
        )
    return Image.fromarray(picture)


def _loaded(picture: Image.Image) -> Image.Image:
    """A picture of Pillow's with its pixels, which it reads from a file when they are wanted."""
    try:
        picture.load()
    except Exception as error:  # decoders raise many types on damaged data
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"the picture cannot be read from its file ({reason})") from error
    return picture
