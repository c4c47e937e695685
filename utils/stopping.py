"""When a text ends, and what can be shown of it before: ids come one by one, text in pieces.

Tokens of byte-level BPE are bytes: a character may need several of them, and a stop string may
begin in one and end in another.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.tokenizer import encode

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer


class FinishReason(StrEnum):
    """Why a text ended."""

    eos = "eos"
    """the end-of-text id or a stop token was chosen"""
    stop_string = "stop_string"
    """the text came to a stop string"""
    length = "length"
    """the number of tokens was reached"""


@dataclass(frozen=True)
class Stopping:
    """When a text ends.

    Attributes:
        max_new_tokens: new tokens at most.
        end_ids: ids that end a text; they are its last ones and no part of what it says.
        min_new_tokens: before so many new tokens no end id is chosen and no stop string counts.
        stop_strings: a text ends before the first of these.
    """

    max_new_tokens: int
    end_ids: tuple[int, ...]
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            UserError: names the value that is out of its range.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"{self.max_new_tokens} new tokens are asked for; it must be 1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"at least {self.min_new_tokens} new tokens are asked for; that must lie in 0.."
                f"{self.max_new_tokens}, the most that are asked for"
            )
        wrong = next((s for s in self.stop_strings if not isinstance(s, str)), None)
        if wrong is not None:
            raise UserError(f"a stop string is {wrong!r}; expected text")
        if not all(self.stop_strings):
            raise UserError("a stop string is empty; every text would end before its first letter")


def token_ids(tokenizer: GPT2Tokenizer, tokens: Iterable[int | str]) -> tuple[int, ...]:
    """The ids of stop tokens.

    Args:
        tokenizer: the model's.
        tokens: ids, or texts that are one token each.

    Raises:
        UserError: an id that the tokenizer lacks, or a text that is no token or several.
    """
    return tuple(_token_id(tokenizer, token) for token in tokens)


def _token_id(tokenizer: GPT2Tokenizer, token: int | str) -> int:
    if isinstance(token, str):
        ids = encode(tokenizer, token)
        if len(ids) != 1:
            raise UserError(
                f"unknown stop token {token!r}: the tokenizer makes {len(ids)} tokens of it; give "
                "it as a stop string"
            )
        return ids[0]
    known = isinstance(token, Integral) and not isinstance(token, bool)
    if not known or not 0 <= token < len(tokenizer):
        raise UserError(
            f"unknown stop token {token!r}; the tokenizer has the ids 0..{len(tokenizer) - 1}"
        )
    return int(token)


class TextStream:
    """The text of ids that come one by one: whole characters only, nothing of a stop string.

    Attributes:
        text: all that was given out.
        stopped: the stop string that ended the text, if one did.
    """

    def __init__(self, tokenizer: GPT2Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        """A new text.

        Args:
            tokenizer: a byte-level BPE; its special tokens say nothing.
            stop_strings: the text ends before the first of these.
        """
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    def append(self, token: int, may_stop: bool = True) -> str:
        """Takes the next id.

        Args:
            token: the id.
            may_stop: whether a stop string that this token completes ends the text.

        Returns:
            The text that is now certain; later ids only add to it.
        """
        return self._take(self._decoder.decode(self._bytes(token)), may_stop)

    def finish(self) -> str:
        """What was held back, when no more ids come: half a character becomes U+FFFD."""
        return "" if self.stopped else self._give(self._held_and(self._decoder.decode(b"", True)))

    def _held_and(self, new: str) -> str:
        held, self._held = self._held + new, ""
        return held

    def _take(self, new: str, may_stop: bool) -> str:
        before = len(self._held)
        text = self._held_and(new)
        if may_stop:
            # Only a stop string that ends in the new letters was not there before.
            ends = ((text.find(s, max(0, before - len(s) + 1)), s) for s in self._stop_strings)
            found = min(((at, s) for at, s in ends if at >= 0), default=None)
            if found is not None:
                self.stopped = found[1]
                return self._give(text[: found[0]])
        self._held = text[len(text) - self._beginning(text) :]
        return self._give(text[: len(text) - len(self._held)])

    def _beginning(self, text: str) -> int:
        """How many letters at the end of a text may be the beginning of a stop string."""
        longest = max(map(len, self._stop_strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop_strings):
                return length
        return 0

    def _give(self, piece: str) -> str:
        self.text += piece
        return piece

    def _bytes(self, token: int) -> bytes:
        written = self._tokenizer.convert_ids_to_tokens(token)
        if token in self._special or written is None:
            return b""
        letters = _bytes_of_letters()
        return bytes(letters[letter] for letter in written)


@cache
def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a letter: which byte a letter stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
