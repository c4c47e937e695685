"""Text for the language model: a scene in words, then captions and questions that depend on it.

A document is a *context*, which describes a scene, and *segments*, each of which sees the context
and itself but no other segment. Every segment begins at the position after the context, as a
prompt begins after the picture's tokens. No picture is involved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import GPT2Tokenizer

from training.world.captions import caption, statement, word_map
from training.world.questions import TOPICS
from training.world.scenes import Scene, random_scene

PROMPT_WEIGHT = 0.1
"""Share in the loss of words that no context determines: questions, and contexts themselves."""

SEGMENTS = 8
"""Segments of a document, at most."""

_MAPS, _STATEMENTS = 0.7, 0.15
"""Shares of contexts that are maps and statements; the others are captions."""

_TOPIC_WEIGHTS = {
    **{"fact": 3, "place fact": 0.5, "which": 2, "exists": 1.5, "count": 4, "relation": 1.5},
    **{"what where": 2, "place": 0.3, "plain fact": 0.7},
}


@dataclass(frozen=True)
class Document:
    """Token ids of a document, all arrays of one length.

    Attributes:
        ids: tokens of the context, then of each segment.
        positions: rotary positions; each segment starts after the context.
        segments: 0 for the context, 1, 2, ... for the segments.
        weights: share of each token in the loss as a target.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Writer:
    """Writes documents as token ids.

    Args:
        tokenizer: the world's tokenizer.
    """

    def __init__(self, tokenizer: GPT2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.end: int = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """The tokenizer's ids of a text, word by word from a cache."""
        ids: list[int] = []
        for piece in re.findall(r" ?\w+| ?[^\w\s]+", text):
            if piece not in self._known:
                self._known[piece] = self._tokenizer.encode(piece)
            ids += self._known[piece]
        return ids

    def document(self, rng: np.random.Generator) -> Document:
        """A random document about a random training scene."""
        scene = random_scene(rng, "train")
        context = self.encode(_describe(scene, rng))
        parts: list[_Part | None] = [(context, [PROMPT_WEIGHT] * len(context))]
        parts += [self._caption(scene), self._caption_and_question(scene, rng)]
        parts += [self._question(scene, rng) for _ in range(SEGMENTS - 2)]
        return _join([part for part in parts if part is not None])

    def _caption(self, scene: Scene) -> _Part:
        ids = [*self.encode(caption(scene)), self.end]
        return ids, [1.0] * len(ids)

    def _question(self, scene: Scene, rng: np.random.Generator) -> _Part | None:
        topics, weights = list(_TOPIC_WEIGHTS), np.array(list(_TOPIC_WEIGHTS.values()))
        topic = topics[rng.choice(len(topics), p=weights / weights.sum())]
        question = TOPICS[topic](scene, rng)
        if question is None:
            return None
        asked = self.encode(question.prompt)
        answered = [*self.encode(f" {question.answer}"), self.end]
        return asked + answered, [PROMPT_WEIGHT] * len(asked) + [1.0] * len(answered)

    def _caption_and_question(self, scene: Scene, rng: np.random.Generator) -> _Part | None:
        """A question asked after a caption; that a question follows is not to be learned."""
        following = self._question(scene, rng)
        if following is None:
            return None
        ids, weights = self._caption(scene)
        gap = self.encode(" Q")
        asked, asked_weights = following
        ids = ids[:-1] + gap + asked[1:]
        return ids, weights[:-1] + [0.0] * len(gap) + asked_weights[1:]


_Part = tuple[list[int], list[float]]


def _describe(scene: Scene, rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < _MAPS:
        return word_map(scene, rng)
    return statement(scene, rng) if chance < _MAPS + _STATEMENTS else caption(scene)


def _join(parts: Sequence[_Part]) -> Document:
    start = len(parts[0][0])
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    weights: list[float] = []
    for number, (part, part_weights) in enumerate(parts):
        offset = 0 if number == 0 else start
        ids += part
        positions += range(offset, offset + len(part))
        segments += [number] * len(part)
        # The first segment, a caption, follows its context directly; the others do not.
        weights += [part_weights[0] if number == 1 else 0.0, *part_weights[1:]]
    return Document(
        np.array(ids), np.array(positions), np.array(segments), np.array(weights, np.float32)
    )
