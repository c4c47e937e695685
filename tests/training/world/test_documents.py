"""Documents: text alone, of training scenes alone, with segments that see only the context."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from training.world.captions import parse_caption
from training.world.documents import Writer
from training.world.scenes import split_of
from training.world.text import NO_SEGMENT, attention_mask, collate
from utils.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("models/world")


@pytest.fixture
def writer() -> Writer:
    """A writer with the shipped tokenizer."""
    return Writer(TOKENIZER)


def test_encoding_word_by_word_is_the_tokenizers(writer: Writer):
    for text in (
        "A picture of bananas left of dogs in snow: two bananas, one dog. Q: Is it cold? A: no",
        " snow snow dog sea",
        "There is a bus and two bees at night. The bees are above the bus.",
    ):
        assert writer.encode(text) == TOKENIZER.encode(text)


def test_the_same_seed_writes_the_same_document(writer: Writer):
    one, same = (writer.document(np.random.default_rng(4)) for _ in range(2))
    assert (one.ids == same.ids).all()


def test_segments_begin_after_the_context_and_end_with_the_end_of_text(writer: Writer):
    for seed in range(30):
        document = writer.document(np.random.default_rng(seed))
        context = int((document.segments == 0).sum())
        for number in range(1, document.segments.max() + 1):
            inside = document.segments == number
            expected = context + np.arange(inside.sum())
            assert (document.positions[inside] == expected).all()
            assert document.ids[inside][-1] == TOKENIZER.eos_token_id


def test_captions_in_documents_are_of_training_scenes(writer: Writer):
    found = 0
    for seed in range(200):
        document = writer.document(np.random.default_rng(seed))
        for sentence in re.findall(r"A picture of[^.]*\.", TOKENIZER.decode(document.ids)):
            scene = parse_caption(sentence)
            assert scene is not None
            assert split_of(scene) == "train"
            found += 1
    assert found >= 200


def test_a_token_attends_to_the_context_and_to_its_own_segment_up_to_itself(writer: Writer):
    documents = [writer.document(np.random.default_rng(seed)) for seed in range(3)]
    batch = collate(documents, TOKENIZER.eos_token_id)
    mask = attention_mask(batch.segments)
    assert set(batch.segments[batch.weights > 0].tolist()) <= set(range(20))
    for row, segments in enumerate(batch.segments.tolist()):
        for query in (0, 5, 20, 60, len(segments) - 1):
            allowed = {key for key in range(query + 1) if segments[key] in (0, segments[query])}
            assert set(torch.nonzero(mask[row, 0, query] == 0).flatten().tolist()) == allowed


def test_padding_has_no_weight(writer: Writer):
    documents = [writer.document(np.random.default_rng(seed)) for seed in range(4)]
    batch = collate(documents, TOKENIZER.eos_token_id)
    assert (batch.weights[batch.segments == NO_SEGMENT] == 0).all()
    assert [int((row != NO_SEGMENT).sum()) for row in batch.segments] == [
        len(document.ids) for document in documents
    ]
