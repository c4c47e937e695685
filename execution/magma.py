"""MAGMA as an object: pictures and prompts in, answers out.

with Magma.from_pretrained("checkpoints/magma", device="cpu") as magma:
    print(magma.generate("dog.jpg", "A picture of", temperature=0)[0].text)
"""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from config.config import MagmaConfig, Precision
from config.original import preset_or_original
from config.parsing import load_preset, preset_names
from execution.answers import Answer, Stream
from execution.inputs import ImageLike, Prepared, pieces_of, prepare
from execution.options import Options, resolve
from execution.prompts import check_length
from execution.sessions import OneSession, Sessions
from modelling.mapping import model_weights
from utils.checkpoint import open_checkpoint
from utils.checkpoint_sources import RELEASE_PRESET, published_checkpoint, random_checkpoint
from utils.errors import UserError
from utils.images import ImageInput
from utils.model_folder import folder_config, is_model_folder
from utils.tokenizer import tokenizer_for

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

__all__ = ["Answer", "ImageInput", "Magma", "Options", "Stream"]

RANDOM_PRESET = "tiny"
"""The preset that has random weights where no checkpoint is named."""


class Magma:
    """A model that is ready to answer.

    Programs are built when they are first needed, one for each number of sequences that run
    together; all use the same weights. Not for several threads at once.

    Attributes:
        config: the configuration.
        tokenizer: the model's tokenizer.
    """

    def __init__(
        self, sessions: Sessions | OneSession, config: MagmaConfig, tokenizer: GPT2Tokenizer
    ) -> None:
        """Use :meth:`from_pretrained`."""
        self._sessions = sessions
        self.config = config
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path_or_preset: str | os.PathLike[str] = RELEASE_PRESET,
        *,
        config: str | MagmaConfig | None = None,
        device: object = None,
        tensor_parallel: int | None = None,
        dtype: object = None,
        max_batch: int | None = None,
        scheme: str = "cached",
        trace: Path | None = None,
    ) -> Magma:
        """Opens a model.

        Args:
            path_or_preset: a model folder, any checkpoint, or the name of a preset: "tiny" makes
                random weights, the others download the published ones (12 GB).
            config: of the checkpoint, a preset's name or a configuration. By default that of the
                model folder, of the preset, or ``magma_v1_500``.
            device: where the engine has several, such as "cpu" and "cuda:0"; by default the
                environment's POPXL_DEVICE or the engine's choice.
            tensor_parallel: replicas over which the model is cut; the configuration's by default.
            dtype: "float16" or "float32", also as a type of numpy or torch; the configuration's by
                default.
            max_batch: sequences that run together at most; more are run in turns. By default 8, or
                the configuration's number if that is greater.
            scheme: "cached" keeps keys and values; "recompute" runs everything again for every
                token.
            trace: folder in which each program writes the time and bytes of its phases.

        Raises:
            UserError: no such model, or values that do not fit together.
        """
        preset = str(path_or_preset) in preset_names()
        path = None if preset else Path(path_or_preset)
        if path is not None and not path.exists():
            raise UserError(
                f"{path}: no such checkpoint, and no preset (there are: "
                f"{', '.join(preset_names())})"
            )
        settled = _config_of(path, str(path_or_preset) if preset and config is None else config)
        if tensor_parallel is not None:
            settled.transformer.execution.tensor_parallel = tensor_parallel
        if dtype is not None:
            settled.visual.precision = settled.transformer.precision = _precision(dtype)
        return cls.of_config(
            settled,
            path or checkpoint_of(str(path_or_preset), settled),
            scheme=scheme,
            device=device,
            max_batch=max_batch,
            trace=trace,
        )

    @classmethod
    def of_config(
        cls,
        config: MagmaConfig,
        checkpoint: Path,
        *,
        scheme: str = "cached",
        device: object = None,
        max_batch: int | None = None,
        trace: Path | None = None,
    ) -> Magma:
        """A model of exactly this configuration; see :meth:`from_pretrained`."""
        config.validate()
        tensors = open_checkpoint(checkpoint, config)
        tokenizer = tokenizer_for(checkpoint, config.transformer.embedding.real_vocab_size)
        sessions = Sessions(
            config,
            model_weights(config, tensors),
            scheme,
            tokenizer.eos_token_id,
            max_batch,
            trace,
            None if device is None else str(device),
        )
        return cls(sessions, config, tokenizer)

    @classmethod
    def from_checkpoint(
        cls,
        config_path: str | os.PathLike[str],
        checkpoint_path: str | os.PathLike[str] | None = None,
        device: object = None,
    ) -> Magma:
        """Opens a model as older programs do.

        Args:
            config_path: a YAML file of the original MAGMA, or a preset's name.
            checkpoint_path: any checkpoint; None downloads the published one.
            device: see :meth:`from_pretrained`.

        Raises:
            UserError: see :meth:`from_pretrained`.
        """
        config = preset_or_original(config_path)
        path = published_checkpoint(config) if checkpoint_path is None else Path(checkpoint_path)
        return cls.of_config(config, path, device=device)

    @classmethod
    def of_session(cls, session: Any, config: MagmaConfig, tokenizer: GPT2Tokenizer) -> Magma:
        """A model around a session that is entered and has its weights, and stays its owner's."""
        return cls(OneSession(session, config, tokenizer.eos_token_id), config, tokenizer)

    def open_session(self) -> Any:
        """An entered session for the configuration's number of sequences, to be run by hand."""
        return self._sessions.with_room(self.config.batch).session

    def close(self) -> None:
        """Ends the model's sessions; the next call opens them anew."""
        self._sessions.close()

    def __enter__(self) -> Magma:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the model."""
        self.close()

    def generate(
        self,
        images: ImageLike | list[Any] | None = None,
        prompts: str | list[Any] = "",
        *,
        skip_bad: bool = False,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Continues prompts.

        Args:
            images: a picture (path, address, ImageInput, PIL image, array), or for each prompt one,
                a list of them, or None; they come before its text.
            prompts: a text, or a list of them. A prompt may also be a list of texts and pictures in
                any order (bare strings are text). One picture goes with all of several prompts, and
                one prompt with all of several pictures.
            skip_bad: whether a prompt whose picture cannot be read gets an answer with ``error``
                while the others go on.
            **options: see :class:`execution.options.Options`.

        Returns:
            The answers in the order of the prompts, samples of a prompt together.

        Raises:
            UserError: values or sizes that do not fit, no or no readable picture; before any run.
        """
        stream = self.stream(images, prompts, skip_bad=skip_bad, **options)
        for _ in stream:
            pass
        return stream.answers

    def stream(
        self,
        images: ImageLike | list[Any] | None = None,
        prompts: str | list[Any] = "",
        *,
        skip_bad: bool = False,
        **options: Unpack[Options],
    ) -> Stream:
        """As :meth:`generate`, piece by piece.

        Returns:
            An iterator of the answer's text in pieces of whole characters. With several answers
            each piece says by ``answer`` whose it is. ``answers`` has what there is so far.
        """
        settled = resolve(options, self.tokenizer, self.config.seed)
        prepared = self._prepare(images, prompts, skip_bad, settled.stopping.max_new_tokens)
        return Stream(self._sessions, prepared, settled, self.tokenizer)

    def _prepare(self, images: Any, prompts: Any, skip_bad: bool, new_tokens: int) -> Prepared:
        """Reads pictures and texts and checks that they fit."""
        pieces = pieces_of(images, prompts)
        resolution = self.config.visual.image_resolution
        prepared = prepare(pieces, self.tokenizer, resolution, skip_bad)
        for index, prompt in enumerate(prepared.prompts):
            name = "the prompt" if len(pieces) == 1 else f"prompt {index}"
            if prompt is not None:
                if not prompt:
                    raise UserError(f"{name} is empty: it needs a picture or some text")
                check_length(self.config, prompt, new_tokens, f"{new_tokens} new ones", name)
        return prepared


def checkpoint_of(preset: str, config: MagmaConfig) -> Path:
    """The checkpoint of a preset where none is named: random weights, or the published ones.

    Raises:
        UserError: the configuration has other sizes than the published model, or no download.
    """
    return (random_checkpoint if preset == RANDOM_PRESET else published_checkpoint)(config)


def _config_of(path: Path | None, config: str | MagmaConfig | None) -> MagmaConfig:
    """The configuration to use, a copy."""
    if isinstance(config, MagmaConfig):
        return deepcopy(config)
    if config is None and path is not None and is_model_folder(path):
        return folder_config(path)
    return load_preset(RELEASE_PRESET if config is None else config)


def _precision(dtype: object) -> Precision:
    name = str(dtype).removeprefix("torch.")
    if isinstance(dtype, type):
        name = np.dtype(dtype).name
    try:
        return Precision(name)
    except ValueError:
        known = " or ".join(Precision)
        raise UserError(f"dtype is {name!r}; it must be {known}") from None
