"""What engines that generate text are asked for, and the model that all of them run.

All engines run GPT-J's widths with some blocks of it. Ours has MAGMA's adapters besides; no peer
has them. Weights are random: values change no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from config.config import MagmaConfig
from config.parsing import load_preset


@dataclass(frozen=True)
class Times:
    """One generation.

    Attributes:
        first_s: From the prompt to the first new token, picture included.
        image_s: The share of it that encoded the picture.
        prefill_s: The share of it that the language model took for the prompt.
        step_s: Of each later token.
        ids: New ids of each sequence, where the engine tells them.
    """

    first_s: float
    image_s: float
    prefill_s: float
    step_s: list[float]
    ids: list[list[int]] = field(default_factory=list)


class Engine(Protocol):
    """A model that is ready to run."""

    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """Continues prompts greedily.

        Args:
            prompts: Ids of each sequence, of one length.
            new_tokens: To make for each.
            picture: Whether a picture comes before the ids. An engine without pictures takes as
                many more ids as a picture has positions, and encodes a picture beside that if it
                can.
        """

    def more(self, tokens: int) -> list[float]:
        """Seconds of each of some more tokens behind the last run."""


def model_slice(
    preset: str,
    blocks: int,
    text_tokens: int,
    tensor_parallel: int = 4,
    batch: int = 1,
    encoder: bool = True,
) -> MagmaConfig:
    """A preset's widths with fewer blocks.

    Args:
        preset: Its name.
        blocks: Decoder blocks.
        text_tokens: Positions beside the picture's.
        tensor_parallel: Replicas.
        batch: Sequences of a run.
        encoder: With the preset's image encoder; else with the least that gives as many positions,
            for benchmarks of the language model alone.
    """
    config = load_preset(preset).with_batch(batch)
    if not encoder:
        config.visual.layers = (1, 1, 1, 1)
        config.visual.width = 2
    config.transformer.layers = blocks
    config.transformer.sequence_length = text_tokens
    config.transformer.execution.tensor_parallel = tensor_parallel
    config.validate()
    return config


def step_bytes(config: MagmaConfig, slots: int, adapters: bool = True) -> int:
    """Bytes that one decode step must read: weights of blocks and head, keys and values.

    Args:
        config: Sizes.
        slots: Positions of each sequence so far.
        adapters: Whether the engine has them.
    """
    lm = config.transformer
    h = lm.hidden_size
    adapter = 2 * h * lm.inner_of(lm.ff_adapter)
    block = 4 * h * h + 2 * h * lm.inner_size + (adapter if adapters else 0)
    cached = config.batch * slots * lm.layers * 2 * h
    size = np.dtype(str(lm.precision)).itemsize
    return size * (lm.layers * block + lm.embedding.vocab_size * h + cached)


def random_prompts(config: MagmaConfig, length: int, seed: int = 0) -> list[list[int]]:
    """b prompts of one length."""
    rows = config.transformer.embedding.real_vocab_size
    ids = np.random.default_rng(seed).integers(rows, size=(config.batch, length))
    return ids.tolist()


class SliceWeights(Mapping[str, np.ndarray]):
    """A checkpoint with the language model of a file, and the file's encoder if it fits.

    An encoder of another size is random, so that one big file serves all benchmarks.
    """

    def __init__(self, config: MagmaConfig, path: Path, written_for: MagmaConfig) -> None:
        """Maps the file.

        Args:
            config: What is to run.
            path: A checkpoint.
            written_for: The configuration that the file was written for.
        """
        from utils.checkpoint import open_checkpoint
        from utils.random_tensors import RandomTensors

        self._file = open_checkpoint(path, written_for)
        self._random = RandomTensors(config, dtype=str(config.transformer.precision))
        self._own_encoder = config.visual.width == written_for.visual.width
        self._names = [name for name in self._file if not self._drawn(name)]
        self._names += [name for name in self._random if self._drawn(name)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._random[name] if self._drawn(name) else self._file[name]

    def _drawn(self, name: str) -> bool:
        return name.startswith("image_prefix.") and not self._own_encoder

    def __contains__(self, name: object) -> bool:
        return name in (self._random if self._drawn(str(name)) else self._file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
