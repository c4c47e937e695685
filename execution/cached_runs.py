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
        self._image = np.zeros((1, 3, side, side), precision)
        self._feeds = {
            getattr(inputs, name): on_replicas(config, array) for name, array in self._host.items()
        }
        self._feeds[inputs.words] = self._words
        self._feeds[inputs.image] = on_replicas(config, self._image)

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """See :class:`execution.runs.Runs`."""
        pictures = self._image[:0] if images is None else images_host(self._config, images)
        self._check(len(pictures), prompts)
        entries = self._encode(pictures)
        return self._prefill([_renumbered(prompt, entries) for prompt in prompts])

    def step(self, tokens: Sequence[int | None]) -> Array:
        """See :class:`execution.runs.Runs`."""
        self._host["slot"] += 1
        # An ended sequence goes on with any id: nobody reads what comes of it.
        self._set_words(np.array([0 if token is None else token for token in tokens]))
        return self._run(RunKind.DECODE)

    def _check(self, num_pictures: int, prompts: Sequence[Prompt]) -> None:
        config = self._config
        room = picture_entries(config)
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

    def _encode(self, pictures: Array) -> list[int]:
        """Embeds pictures, equal ones once; returns the number that each is kept under."""
        different: list[Array] = []
        entries = []
        for picture in pictures:
            equals = (n for n, other in enumerate(different) if np.array_equal(picture, other))
            entries.append(next(equals, len(different)))
            if entries[-1] == len(different):
                different.append(picture)
                self._image[0] = picture
                self._host["slot"][0] = entries[-1]
                self._run(RunKind.ENCODE)
        return entries

    def _prefill(self, prompts: Sequence[Prompt]) -> Array:
        """Reads prompts; one that all sequences have is read once."""
        shared = len(prompts) > 1 and all(prompt == prompts[0] for prompt in prompts)
        self._lay_out(prompts[:1] if shared else prompts)
        return self._run(RunKind.SHARED_PREFILL if shared else RunKind.PREFILL)

    def _lay_out(self, prompts: Sequence[Prompt]) -> None:
        """Gives prompts to the streams so that all end at one slot."""
        config, source, pads = self._config, self._host["source"], self._host["pads"]
        i = config.image_tokens
        first_word = picture_entries(config) * i
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
        source[:] = pads[:] = 0
        for line, row in enumerate(rows):
            pads[line] = longest - len(row)
            source[line, longest - len(row) : longest] = row
        self._host["slot"][0] = longest - 1
        self._set_words(np.array(words, np.int64))

    def _set_words(self, ids: Array) -> None:
        """Puts ids at the head of the stream."""
        self._words[..., : len(ids)] = words_host(self._config, ids)

    def _run(self, kind: RunKind) -> Array:
        self._host["kind"][...] = kind
        logits = self._session.run(self._feeds)[self._session.outputs.logits]
        if self._config.tensor_parallel > 1:
            logits = np.concatenate(list(logits), axis=-1)
        return logits.astype(np.float32)


def _renumbered(prompt: Prompt, numbers: Sequence[int]) -> list[int | Picture]:
    """The prompt with other numbers for its pictures."""
    return [Picture(numbers[x.index]) if isinstance(x, Picture) else x for x in prompt]
