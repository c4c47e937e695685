"""Lengths for which graphs are built: work follows real lengths, but a graph has fixed shapes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SMALLEST_PROMPT = 16
PROMPTS_PER_DOUBLING = 8
"""A prompt's work grows with its bucket, so at most an eighth of it may be wasted."""

SMALLEST_READ = 64
READS_PER_DOUBLING = 4
"""A decode step reads few bytes of keys beside its weights: a quarter of those may be wasted."""

SMALLEST_SCORE, LARGEST_SCORE = 4, 64
"""Answers to choose from are a few tokens long; longer texts are scored piece by piece."""


def buckets(maximum: int, smallest: int, per_doubling: int) -> tuple[int, ...]:
    """Lengths in ascending order, of which the last is the maximum.

    Args:
        maximum: The greatest length that occurs.
        smallest: The least bucket, and the least distance of two.
        per_doubling: Buckets between one length and its double.
    """
    lengths, length = [], smallest
    while length < maximum:
        lengths.append(length)
        length += max(smallest, (1 << (length.bit_length() - 1)) // per_doubling)
    return (*lengths, maximum)


def prompt_buckets(slots: int) -> tuple[int, ...]:
    """Lengths of prompts, pictures and pads included, in a cache of so many slots."""
    return buckets(slots, SMALLEST_PROMPT, PROMPTS_PER_DOUBLING)


def read_buckets(slots: int) -> tuple[int, ...]:
    """How many slots a decode step may read of a cache of so many slots."""
    return buckets(slots, SMALLEST_READ, READS_PER_DOUBLING)


def score_buckets(text_tokens: int) -> tuple[int, ...]:
    """How many slots a run may score, where a text has at most so many tokens."""
    return buckets(min(LARGEST_SCORE, text_tokens), SMALLEST_SCORE, 1)


def bucket_of(length: int, lengths: Sequence[int]) -> int:
    """The least of some ascending lengths with room for one."""
    return lengths[bisect_left(lengths, length)]
