"""Lengths for which graphs are built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.buckets import (
    SMALLEST_PROMPT,
    SMALLEST_READ,
    bucket_of,
    buckets,
    prompt_buckets,
    read_buckets,
    score_buckets,
)


@given(st.integers(1, 3000), st.sampled_from([1, 4, 16, 64]), st.sampled_from([1, 2, 4, 8]))
def test_every_length_has_a_bucket_that_wastes_little(maximum, smallest, per_doubling):
    lengths = buckets(maximum, smallest, per_doubling)
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == maximum
    for length in range(1, maximum + 1, 7):
        bucket = bucket_of(length, lengths)
        assert bucket == min(size for size in lengths if size >= length)
        assert bucket - length < max(smallest, length / per_doubling)


@pytest.mark.parametrize(("slots", "prompts", "reads"), [(65, 5, 2), (644, 27, 10), (1168, 34, 13)])
def test_there_are_few(slots, prompts, reads):
    assert len(prompt_buckets(slots)) == prompts
    assert len(read_buckets(slots)) == reads


def test_prompts_and_reads_waste_what_they_may():
    assert prompt_buckets(644)[:3] == (SMALLEST_PROMPT, 32, 48)
    assert bucket_of(144 + 24, prompt_buckets(644)) == 176
    assert read_buckets(644)[:2] == (SMALLEST_READ, 128)


def test_scores_are_for_a_few_tokens_or_piece_by_piece():
    assert score_buckets(500) == (4, 8, 16, 32, 64)
    assert score_buckets(24) == (4, 8, 16, 24)
    assert score_buckets(2) == (2,)
