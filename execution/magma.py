"""MAGMA as an object: pictures and prompts in, answers out.

with Magma.from_pretrained("checkpoints/magma", device="cpu") as magma:
    print(magma.generate("dog.jpg", "A picture of", temperature=0)[0].text)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from config.config import MagmaConfig, Precision
from config.original import preset_or_original
from config.parsing import load_preset, preset_names
from execution.answers import Answer, Stream
from execution.engine import EngineOptions, check_budget, check_weights
from execution.inputs import ImageLike, Prepared, pieces_of, pieces_of_one, prepare
from execution.options import Kinds, Options, check_kinds, resolve
from execution.prompts import Array, Embedded, Prompt, check_continuations, check_length
from execution.score import score
from execution.sessions import OneSession, Sessions
from modelling.mapping import model_weights
from utils.checkpoint import open_checkpoint
from utils.checkpoint_sources import RELEASE_PRESET, checkpoint_of
from utils.collector import paused_collector
from utils.errors import UserError
from utils.files import made_folder
from utils.images import ImageInput
from utils.model_folder import folder_config, is_model_folder
from utils.tokenizer import encode, tokenizer_for

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

__all__ = ["Answer", "ImageInput", "Magma", "Options", "Score", "Stream"]

_NAME: tuple[type, ...] = (str, os.PathLike)

_KINDS: Kinds = {
    "path_or_preset": (_NAME, "a model folder, a checkpoint, or the name of a preset"),
    "config_path": (_NAME, "a YAML file of the original MAGMA, or the name of a preset"),
    "checkpoint_path": (_NAME, "a checkpoint"),
    "config": ((str, MagmaConfig), "the name of a preset, or a MagmaConfig"),
    "tensor_parallel": (Integral, "a whole number"),
    "max_batch": (Integral, "a whole number"),
    "trace": (_NAME, "a folder"),
    "device_memory": ((str, Integral), "bytes, or a text such as 2GiB or auto"),
}

STEPS_BEHIND_EMBEDDINGS = 100
"""New tokens at most behind given embeddings, where nothing is asked for; as older programs do."""


@dataclass(frozen=True)
class Score:
    """How probable one continuation of one prompt is.

    Attributes:
        text: the continuation.
        ids: its ids.
        log_probs: of each id the natural logarithm of its probability behind the prompt and the ids
            before it.
    """

    text: str
    ids: list[int]
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Logarithm of the probability of the whole continuation."""
        return sum(self.log_probs)


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
        trace: str | os.PathLike[str] | None = None,
        device_memory: str | int | None = None,
        weights: str | None = None,
    ) -> Magma:
        """Opens a model.

        Args:
            path_or_preset: a model folder, any checkpoint, or the name of a preset: "world" is the
                small model of this repository, "tiny" makes random weights, the others download the
                published ones (12 GB).
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
            trace: folder in which each program writes the time and bytes of its phases, and what
                it keeps where; made where there is none.
            device_memory: what a program may take, of anonymous memory on a CPU, of its own on a
                GPU: bytes, or a text such as "2GiB" or "auto". By default there is no limit on a
                CPU, and what is free on a GPU.
            weights: "mapped" uses them where their files are mapped, on a CPU the default; "read"
                keeps as much in memory as ``device_memory`` allows and reads the rest from the
                files for each use; "pinned" keeps the rest in pinned memory of the host, for a
                GPU.

        Raises:
            UserError: no such model, or values that do not fit together.
        """
        check_kinds({"path_or_preset": path_or_preset}, _KINDS)
        check_kinds(_given(config=config, tensor_parallel=tensor_parallel), _KINDS)
        preset = str(path_or_preset) in preset_names()
        path = None if preset else Path(path_or_preset)
        # Path.exists raises for some names.
        if path is not None and not os.path.exists(path):  # noqa: PTH110
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
            device_memory=device_memory,
            weights=weights,
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
        trace: str | os.PathLike[str] | None = None,
        device_memory: str | int | None = None,
        weights: str | None = None,
    ) -> Magma:
        """A model of exactly this configuration; see :meth:`from_pretrained`."""
        check_kinds(_given(max_batch=max_batch, trace=trace, device_memory=device_memory), _KINDS)
        config.validate()
        engine = EngineOptions(
            device=None if device is None else str(device),
            device_memory=check_budget(device_memory),
            weights=check_weights(weights),
        )
        engine.check()
        with paused_collector():
            tensors = open_checkpoint(checkpoint, config)
            tokenizer = tokenizer_for(checkpoint, config.transformer.embedding.real_vocab_size)
        sessions = Sessions(
            config,
            model_weights(config, tensors),
            scheme,
            tokenizer.eos_token_id,
            max_batch,
            None if trace is None else made_folder(trace),
            engine,
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
            checkpoint_path: any checkpoint. By default the preset's, as :meth:`from_pretrained`
                has it, and for a YAML file the published one.
            device: see :meth:`from_pretrained`.

        Raises:
            UserError: see :meth:`from_pretrained`.
        """
        check_kinds({"config_path": config_path}, _KINDS)
        check_kinds(_given(checkpoint_path=checkpoint_path), _KINDS)
        config = preset_or_original(config_path)
        path = None if checkpoint_path is None else Path(checkpoint_path)
        return cls.of_config(config, path or checkpoint_of(str(config_path), config), device=device)

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

    @overload
    def generate(
        self,
        images: ImageLike | list[Any] | None = None,
        prompts: str | list[Any] = "",
        *,
        skip_bad: bool = False,
        **options: Unpack[Options],
    ) -> list[Answer]: ...

    @overload
    def generate(
        self,
        *,
        embeddings: Any,
        max_steps: int = STEPS_BEHIND_EMBEDDINGS,
        decode: bool = True,
        **options: Unpack[Options],
    ) -> list[str] | list[list[int]]: ...

    def generate(
        self,
        images: Any = None,
        prompts: Any = "",
        *,
        skip_bad: bool = False,
        embeddings: Any = None,
        max_steps: int = STEPS_BEHIND_EMBEDDINGS,
        decode: bool = True,
        **options: Unpack[Options],
    ) -> list[Answer] | list[str] | list[list[int]]:
        """Continues prompts, or embeddings as older programs do.

        Args:
            images: a picture (path, address, ImageInput, PIL image, array), or for each prompt one,
                a list of them, or None; they come before its text.
            prompts: a text, or a list of them. A prompt may also be a list of texts and pictures in
                any order (bare strings are text). One picture goes with all of several prompts, and
                one prompt with all of several pictures.
            skip_bad: whether a prompt whose picture cannot be read gets an answer with ``error``
                while the others go on.
            embeddings: instead of pictures and prompts, [b, s, h] of :meth:`preprocess_inputs`.
            max_steps: with embeddings, new tokens at most.
            decode: with embeddings, whether texts are returned; else ids.
            **options: max_new_tokens, min_new_tokens, num_return_sequences, temperature, top_k,
                top_p, top_p_mode, repetition_penalty, seed, stop_strings, stop_tokens,
                logits_processor, top_log_probs, output_logits, generation_config; see
                :class:`execution.options.Options`.

        Returns:
            The answers in the order of the prompts, samples of a prompt together. With embeddings,
            for each sequence the new text or ids.

        Raises:
            UserError: values or sizes that do not fit, no or no readable picture; before any run.
        """
        if embeddings is not None:
            if images is not None or not (isinstance(prompts, str) and not prompts):
                raise UserError("give either embeddings, or pictures and prompts")
            answers = self._continue_embeddings(embeddings, {"max_new_tokens": max_steps} | options)
            return [a.text for a in answers] if decode else [a.ids for a in answers]
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

    def _continue_embeddings(self, embeddings: Any, options: Options) -> list[Answer]:
        if hasattr(embeddings, "detach"):  # a tensor of torch
            embeddings = embeddings.detach().float().cpu()
        try:
            sequences = np.asarray(embeddings, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError("the embeddings are no array of numbers (b, s, h)") from error
        if sequences.ndim != 3 or not len(sequences):
            raise UserError(f"the embeddings have shape {sequences.shape}; expected (b, s, h)")
        settled = resolve(options, self.tokenizer, self.config.seed)
        prepared = Prepared([[Embedded(rows)] for rows in sequences], [], {})
        self._check(prepared, settled.stopping.max_new_tokens)
        stream = Stream(self._sessions, prepared, settled, self.tokenizer)
        for _ in stream:
            pass
        return stream.answers

    def score(
        self,
        images: ImageLike | list[Any] | None = None,
        prompts: str | list[Any] = "",
        continuations: Sequence[str] | Sequence[Sequence[str]] = (),
    ) -> list[list[Score]]:
        """How probable given continuations are: closed answers, classification.

        Args:
            images: see :meth:`generate`, as for the next.
            prompts: the prompts. Each is read once for all its continuations.
            continuations: texts for every prompt, or a list of texts for each. They are encoded by
                themselves: behind a word a continuation begins with a space.

        Returns:
            For each prompt its continuations' scores, in the order given.

        Raises:
            UserError: see :meth:`generate`; an empty continuation, or the recompute scheme.
        """
        prepared = self._prepare(images, prompts, False, 1)
        texts = _by_prompt(continuations, len(prepared.prompts))
        pairs: list[tuple[Prompt, list[int]]] = [
            (prompt or [], encode(self.tokenizer, text))
            for prompt, line in zip(prepared.prompts, texts, strict=True)
            for text in line
        ]
        wholes, ids = [prompt for prompt, _ in pairs], [continuation for _, continuation in pairs]
        check_continuations(self.config, wholes, ids)
        opened = self._sessions.with_room(min(len(pairs), self._sessions.largest))
        opened.user = self
        found = iter(score(opened.session, opened.config, prepared.images(), wholes, ids))
        left = iter(ids)
        return [[Score(text, next(left), next(found).tolist()) for text in line] for line in texts]

    def embed(
        self, images: ImageLike | list[Any] | None = None, prompts: str | list[Any] = ""
    ) -> list[Array]:
        """What the language model gets of prompts: embeddings of their pictures and words.

        Returns:
            For each prompt [s, h] float32.

        Raises:
            UserError: see :meth:`generate`; or the recompute scheme.
        """
        prepared = self._prepare(images, prompts, False, 1)
        opened = self._sessions.with_room(1)
        opened.user = self
        return [opened.runs.embed(prepared.images(), prompt or []) for prompt in prepared.prompts]

    def preprocess_inputs(self, inputs: str | Sequence[Any]) -> Array:
        """The embeddings of one prompt, as older programs ask for them.

        Args:
            inputs: texts and pictures in any order (bare strings are text).

        Returns:
            [1, s, h] float32, for :meth:`generate`.

        Raises:
            UserError: see :meth:`embed`.
        """
        return self.embed(prompts=[pieces_of_one(inputs)])[0][None]

    def _prepare(self, images: Any, prompts: Any, skip_bad: bool, new_tokens: int) -> Prepared:
        """Reads pictures and texts and checks that they fit."""
        pieces = pieces_of(images, prompts)
        resolution = self.config.visual.image_resolution
        prepared = prepare(pieces, self.tokenizer, resolution, skip_bad)
        self._check(prepared, new_tokens)
        return prepared

    def _check(self, prepared: Prepared, new_tokens: int) -> None:
        for index, prompt in enumerate(prepared.prompts):
            name = "the prompt" if len(prepared.prompts) == 1 else f"prompt {index}"
            if prompt is not None:
                if not prompt:
                    raise UserError(f"{name} is empty: it needs a picture or some text")
                check_length(self.config, prompt, new_tokens, f"{new_tokens} new ones", name)


def _given(**values: object) -> dict[str, object]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _by_prompt(continuations: Any, prompts: int) -> list[list[str]]:
    """The continuations of each prompt."""
    if not isinstance(continuations, Iterable) or isinstance(continuations, str):
        raise UserError("there is nothing to score: give a list of continuations")
    given = list(continuations)
    if all(isinstance(text, str) for text in given):
        lines = [given] * prompts
    else:
        lines = [list(line) if isinstance(line, list | tuple) else [None] for line in given]
    if not all(isinstance(text, str) for line in lines for text in line):
        raise UserError("the continuations must be texts, or a list of texts for each prompt")
    if len(lines) != prompts:
        raise UserError(
            f"{len(lines)} lists of continuations for {prompts} prompts; give one for each"
        )
    if not any(lines):
        raise UserError("there is nothing to score: give a list of continuations")
    return lines


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
