"""Prompts: words and, in any places, pictures and given embeddings; which of them fit a model.

Letters: b sequences, i image tokens, h hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.errors import UserError

Array = npt.NDArray[Any]
Ids = Sequence[int]


@dataclass(frozen=True)
class Picture:
    """Where a prompt has a picture.

    Attributes:
        index: which of the pictures that come with the prompts.
    """

    index: int


@dataclass(frozen=True, eq=False)
class Embedded:
    """Where a prompt has positions whose embeddings the host gives.

    Attributes:
        rows: (one or more, h), floating.
    """

    rows: Array


Prompt = Sequence["int | Picture | Embedded"]


def text_of(prompt: Prompt) -> list[int]:
    """The ids of a prompt, without pictures and given embeddings."""
    return [item for item in prompt if not isinstance(item, Picture | Embedded)]


def with_pictures(
    config: MagmaConfig, images: Array | None, prompts: Sequence[Prompt]
) -> tuple[Array | None, list[Prompt]]:
    """Pictures, and prompts that say where they are.

    Args:
        config: the configuration.
        images: preprocessed pictures (any number, 3, y, x), (3, y, x) for one, or None.
        prompts: if none of them names a picture, each begins with its own.

    Returns:
        The pictures in the encoder's precision, and the prompts.

    Raises:
        UserError: pictures of another size, or not one for each prompt where none is named.
    """
    if images is None:
        return None, list(prompts)
    images = images_host(config, images if images.ndim == 4 else images[None])
    if any(isinstance(item, Picture) for prompt in prompts for item in prompt):
        return images, list(prompts)
    if len(images) != len(prompts):
        raise UserError(
            f"{len(images)} pictures for {len(prompts)} prompts; give one for each, or name the "
            "pictures in the prompts"
        )
    return images, [[Picture(row), *prompt] for row, prompt in enumerate(prompts)]


def images_host(config: MagmaConfig, images: Array) -> Array:
    """Pictures (any number, 3, y, x) in the encoder's precision.

    Raises:
        UserError: they have another shape.
    """
    side = config.visual.image_resolution
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        expected = (config.batch, 3, side, side)
        raise UserError(f"expected pictures of shape {expected}, found {images.shape}")
    return images.astype(np.dtype(str(config.visual.precision)), copy=False)


def check_lengths(config: MagmaConfig, prompts: Sequence[Prompt], max_out_tokens: int) -> None:
    """Check that prompts and new tokens fit the configuration.

    Raises:
        UserError: wrong number of prompts, an id that the embedding lacks, no room for a prompt or
            for the new tokens (with the number of tokens that are too many).
    """
    if max_out_tokens < 1:
        raise UserError(f"max_out_tokens is {max_out_tokens}; it must be 1 or greater")
    if len(prompts) != config.batch:
        raise UserError(f"{len(prompts)} prompts for micro_batch_size {config.batch}")
    for prompt in prompts:
        check_length(config, prompt, max_out_tokens, f"max_out_tokens {max_out_tokens}")


def check_prompts(config: MagmaConfig, prompts: Sequence[Prompt], num_pictures: int) -> None:
    """Check that prompts are some, and that each is something that fits the configuration.

    Args:
        config: the configuration.
        prompts: any number.
        num_pictures: how many pictures come with them.

    Raises:
        UserError: there are none, one is empty, names a picture that is not there, or does not fit.
    """
    if not prompts:
        raise UserError("there are no prompts")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {row} is empty: it needs a picture or some text")
        for item in prompt:
            if isinstance(item, Picture) and not 0 <= item.index < num_pictures:
                raise UserError(
                    f"prompt {row} names picture {item.index}, but there are {num_pictures}"
                )
        check_length(config, prompt, 1, "1 new token", f"prompt {row}")


def check_continuations(
    config: MagmaConfig, prompts: Sequence[Prompt], continuations: Sequence[Ids]
) -> None:
    """Check that each prompt has one continuation, and that both fit the configuration together.

    Raises:
        UserError: they do not; the message names the pair.
    """
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts, but {len(continuations)} continuations")
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        name = f"continuation {row}"
        if not continuation:
            raise UserError(f"{name} is empty: there is nothing to score")
        check_ids(config, continuation, name)
        new = f"{len(continuation)} of {name}"
        check_length(config, prompt, len(continuation), new, f"prompt {row}")


def check_length(
    config: MagmaConfig, prompt: Prompt, new_tokens: int, new: str, name: str = "the prompt"
) -> None:
    """Check that a prompt and what follows it fit the configuration.

    Args:
        config: the configuration.
        prompt: the prompt.
        new_tokens: tokens behind it, of which the last needs no position: nothing reads it.
        new: what an error calls them.
        name: what an error calls the prompt.

    Raises:
        UserError: an id that the embedding lacks, embeddings of another width, no room for the
            prompt or for the new tokens (with the number of tokens that are too many).
    """
    ids = text_of(prompt)
    check_ids(config, ids, name)
    others = [item for item in prompt if isinstance(item, Picture | Embedded)]
    for item in others:
        if isinstance(item, Embedded):
            _check_embedded(config, item, name)
    room, what = _room(config, others, name)
    if len(ids) > room:
        raise UserError(
            f"{name} is {len(ids) - room} tokens too long: it has {len(ids)}, {what} is {room}"
        )
    excess = len(ids) + new_tokens - 1 - room
    if excess > 0:
        raise UserError(
            f"{name.removeprefix('the ')} and new tokens are {excess} tokens too long: {len(ids)} "
            f"of the prompt and {new} do not fit {what} {room}"
        )


def check_ids(config: MagmaConfig, ids: Sequence[int], name: str) -> None:
    """Check that the word embedding has a row for each id.

    Raises:
        UserError: it has not.
    """
    rows = config.transformer.embedding.real_vocab_size
    wrong = next((token for token in ids if not 0 <= token < rows), None)
    if wrong is not None:
        raise UserError(
            f"{name} has token id {wrong}, the word embedding has {rows} rows; the tokenizer does "
            "not belong to this model"
        )


def _check_embedded(config: MagmaConfig, item: Embedded, name: str) -> None:
    h = config.transformer.hidden_size
    if item.rows.ndim != 2 or not len(item.rows) or item.rows.shape[1] != h:
        raise UserError(f"{name} has embeddings of shape {item.rows.shape}; expected (number, {h})")
    if not np.isfinite(item.rows).all():
        raise UserError(f"{name} has embeddings that are not finite")


def _room(config: MagmaConfig, others: Sequence[Picture | Embedded], name: str) -> tuple[int, str]:
    """Text positions of a sequence with pictures and embeddings, and what limits them."""
    given = sum(len(item.rows) for item in others if isinstance(item, Embedded))
    pictures = sum(isinstance(item, Picture) for item in others)
    left = config.total_tokens - pictures * config.image_tokens - given
    parts = [f"{pictures} pictures"] * bool(pictures) + [f"{given} embeddings"] * bool(given)
    what = " and ".join(parts)
    if left < 0:
        raise UserError(
            f"{name} is {-left} positions too long: {what} do not fit {config.total_tokens}"
        )
    if left >= config.text_tokens:
        return config.text_tokens, "transformer.sequence_length"
    return left, f"the room beside {what}"
