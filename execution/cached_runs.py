"""Runs of the cached scheme: pictures and prompts once, then one position of each sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config.config import MagmaConfig
from execution.cached import RunKind, picture_entries
from execution.runs import (
    Array,
    MagmaSession,
    Picture,
    Prompt,
    images_host,
    on_replicas,
    words_host,
)
from utils.errors import UserError


class CachedRuns:
    """See :class:`execution.runs.Runs`. Prompts are pictures and text in any order.

    The arrays of a run's inputs are made once and filled in place: most of them are the same on all
    replicas, and views say so.
    """

    def __init__(self, session: MagmaSession, config: MagmaConfig) -> None:
        """See :func:`execution.runs.runs_of`."""
        self._session = session
        self._config = config
        inputs, b = session.inputs, config.batch
        names = ("kind", "slot", "pads", "source")
        shapes = ((), (1,), (b,), (b, config.total_tokens))
        self._host = {n: np.zeros(s, np.int32) for n, s in zip(names, shapes, strict=True)}
        self._words = words_host(config, np.zeros(b * config.text_tokens, np.int32))
        side = config.visual.image_resolution
        precision = np.dtype(str(config.visual.precision))
        self._image = np.zeros((b, 3, side, side), precision)
        self._feeds = {
            getattr(inputs, name): on_replicas(config, array) for name, array in self._host.items()
        }
        self._feeds[inputs.words] = self._words
        self._feeds[inputs.image] = on_replicas(config, self._image)

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """See :class:`execution.runs.Runs`."""
        pictures = np.zeros((0, *self._image.shape[1:])) if images is None else images
        pictures = images_host(self._config, pictures)
        self._check(len(pictures), prompts)
        self._encode(pictures)
        return self._prefill(prompts)

    def step(self, tokens: Sequence[int | None]) -> Array:
        """See :class:`execution.runs.Runs`."""
        self._host["slot"] += 1
        # An ended sequence goes on with any id: nobody reads what comes of it.
        self._set_words(np.array([0 if token is None else token for token in tokens]))
        return self._run(RunKind.DECODE)

    def _check(self, num_pictures: int, prompts: Sequence[Prompt]) -> None:
        config = self._config
        room = config.batch * picture_entries(config)
        if num_pictures > room:
            raise UserError(f"{num_pictures} pictures, but there is room for {room}; give fewer")
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {row} is empty: it needs a picture or some text")
            for item in prompt:
                if isinstance(item, Picture) and not 0 <= item.index < num_pictures:
                    raise UserError(
                        f"prompt {row} names picture {item.index}, but there are {num_pictures}"
                    )

    def _encode(self, pictures: Array) -> None:
        """Embeds all pictures, b at a time."""
        b = len(self._image)
        for entry, first in enumerate(range(0, len(pictures), b)):
            some = pictures[first : first + b]
            self._image[: len(some)] = some
            self._host["slot"][0] = entry
            self._run(RunKind.ENCODE)

    def _prefill(self, prompts: Sequence[Prompt]) -> Array:
        """Lays prompts out so that all end at one slot."""
        config, source, pads = self._config, self._host["source"], self._host["pads"]
        i = config.image_tokens
        first_word = config.batch * picture_entries(config) * i
        rows: list[list[int]] = []
        words: list[int] = []
        for prompt in prompts:
            rows.append([])
            for item in prompt:
                if isinstance(item, Picture):
                    rows[-1] += range(item.index * i, (item.index + 1) * i)
                else:
                    rows[-1].append(first_word + len(words))
                    words.append(item)
        longest = max(map(len, rows))
        source[:] = 0
        for line, row in enumerate(rows):
            pads[line] = longest - len(row)
            source[line, longest - len(row) : longest] = row
        self._host["slot"][0] = longest - 1
        self._set_words(np.array(words, np.int64))
        return self._run(RunKind.PREFILL)

    def _set_words(self, ids: Array) -> None:
        """Puts ids at the head of the stream."""
        self._words[..., : len(ids)] = words_host(self._config, ids)

    def _run(self, kind: RunKind) -> Array:
        self._host["kind"][...] = kind
        logits = self._session.run(self._feeds)[self._session.outputs.logits]
        if self._config.tensor_parallel > 1:
            logits = np.concatenate(list(logits), axis=-1)
        return logits.astype(np.float32)
