"""Answers while they are made: any number of sequences, in turns of what a session takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from execution.generate import Continuation, Generation
from execution.inputs import Prepared
from execution.options import Resolved
from execution.prompts import Array, Embedded, Picture, Prompt
from execution.sessions import OneSession, OpenSession, Sessions
from utils.errors import UserError
from utils.stopping import FinishReason, TextStream

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer


ANSWER_BYTES, TOKEN_BYTES, ALTERNATIVE_BYTES = 512, 160, 200
"""What an answer, a token of it and an alternative to one take, texts included; as measured."""


class Alternative(NamedTuple):
    """A token that could have been chosen."""

    id: int
    text: str
    log_prob: float


@dataclass
class Answer:
    """One continuation of one prompt.

    Attributes:
        prompt: index of the prompt.
        sample: which of its samples.
        text: the new text without special tokens, up to the stop string if one ended it.
        ids: the new ids, those of an end or of a stop string included.
        log_probs: of each id the natural logarithm of the model's probability, before temperature,
            filters and penalties.
        alternatives: for each id the most probable ones, as many as asked for.
        finish_reason: "eos", "stop_string" or "length"; None while it has not ended.
        prompt_ids: the prompt's text ids.
        error: why there is no answer, if a picture could not be read.
    """

    prompt: int
    sample: int = 0
    text: str = ""
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    alternatives: list[list[Alternative]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_ids: list[int] = field(default_factory=list)
    error: str | None = None
    kept_logits: list[Array] = field(default_factory=list, repr=False)

    @property
    def logits(self) -> Array:
        """[len(ids), vocabulary] float32.

        Raises:
            UserError: they were not asked for.
        """
        if not self.kept_logits:
            raise UserError("the logits were not kept; ask for them with output_logits=True")
        return np.stack(self.kept_logits)


class Piece(str):
    """A piece of an answer's text.

    Attributes:
        answer: index of the answer.
    """

    answer: int

    def __new__(cls, text: str, answer: int) -> Piece:
        """The text, and whose it is."""
        piece = super().__new__(cls, text)
        piece.answer = answer
        return piece


class Stream(Iterator[Piece]):
    """Answers being made: gives their text in pieces, as it becomes certain.

    Pieces are whole characters; those of one answer joined are its text. Answers are in the order
    of the prompts, samples of a prompt together. Nothing runs before the first piece is asked for.
    """

    def __init__(
        self,
        sessions: Sessions | OneSession,
        prepared: Prepared,
        options: Resolved,
        tokenizer: GPT2Tokenizer,
    ) -> None:
        """See :meth:`execution.magma.Magma.stream`.

        Raises:
            UserError: the answers could take more memory than there is.
        """
        check_memory(len(prepared.prompts) * options.samples, options, len(tokenizer))
        self._sessions, self._prepared = sessions, prepared
        self._options, self._tokenizer = options, tokenizer
        self._answers = [
            Answer(index, sample, error=prepared.errors.get(index))
            for index in range(len(prepared.prompts))
            for sample in range(options.samples)
        ]
        self._shown = [0] * len(self._answers)
        self._pieces = self._run()

    def __next__(self) -> Piece:
        """The next piece."""
        return next(self._pieces)

    @property
    def answers(self) -> list[Answer]:
        """What there is of all answers so far."""
        return self._answers

    def token_text(self, token: int) -> str:
        """What a token says by itself; half a character becomes U+FFFD."""
        return str(self._tokenizer.decode([token]))

    def _run(self) -> Iterator[Piece]:
        waiting = [n for n, answer in enumerate(self._answers) if answer.error is None]
        for first in range(0, len(waiting), self._sessions.largest):
            yield from self._turn(waiting[first : first + self._sessions.largest])

    def _turn(self, numbers: Sequence[int]) -> Iterator[Piece]:
        """Makes the answers of these numbers together."""
        opened = self._sessions.with_room(len(numbers))
        opened.user = self
        images, prompts = self._inputs(numbers)
        strings = self._options.stopping.stop_strings
        texts = [TextStream(self._tokenizer, strings) for _ in numbers]
        tokens = Continuation(
            *(opened.runs, images, prompts, self._options.sampling, self._options.stopping),
            *(self._options.details, texts, numbers),
        )
        while (row := self._next_row(tokens, opened)) is not None:
            number, result = numbers[row], tokens.results[row]
            if result.finish_reason is not None:
                texts[row].finish()
            self._update(self._answers[number], result, texts[row].text)
            new = texts[row].text[self._shown[number] :]
            self._shown[number] += len(new)
            if new:
                yield Piece(new, number)

    def _next_row(self, tokens: Continuation, opened: OpenSession) -> int | None:
        """The sequence that has a new token; None at the end."""
        if opened.user is not self:
            raise UserError(
                "the model has been used for something else, so this answer cannot be continued; "
                "read a stream to its end before the next call"
            )
        return next(tokens, (None,))[0]

    def _inputs(self, numbers: Sequence[int]) -> tuple[Array | None, list[Prompt]]:
        """Pictures, prompt by prompt, and prompts that number them so."""
        images: list[Array] = []
        prompts: list[Prompt] = []
        for number in numbers:
            prompt: list[int | Picture | Embedded] = []
            for item in self._prepared.prompts[self._answers[number].prompt] or ():
                if isinstance(item, Picture):
                    images.append(self._prepared.pictures[item.index])
                    item = Picture(len(images) - 1)
                prompt.append(item)
            prompts.append(prompt)
        return np.concatenate(images) if images else None, prompts

    def _update(self, answer: Answer, result: Generation, text: str) -> None:
        answer.text, answer.ids, answer.log_probs = text, result.generated_ids, result.log_probs
        answer.finish_reason, answer.prompt_ids = result.finish_reason, result.prompt_ids
        answer.alternatives.append(
            [
                Alternative(token, self.token_text(token), log_prob)
                for token, log_prob in result.alternatives[-1]
            ]
        )
        answer.kept_logits = result.kept_logits


def check_memory(answers: int, options: Resolved, vocabulary: int) -> None:
    """Checks that the machine has the memory for answers of the greatest length.

    Args:
        answers: how many.
        options: their length, and what is noted of each token.
        vocabulary: numbers of a token's logits.

    Raises:
        UserError: it has not.
    """
    details, tokens = options.details, options.stopping.max_new_tokens
    each = TOKEN_BYTES + ALTERNATIVE_BYTES * min(details.alternatives, vocabulary)
    each += 4 * vocabulary * details.keep_logits
    needed = answers * (ANSWER_BYTES + tokens * each)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{answers:,} answers of up to {tokens} tokens with what is kept of them take "
            f"{needed >> 20:,} MiB, this machine has {there >> 20:,}; ask for fewer at a time"
        )
