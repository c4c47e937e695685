"""Training on text: segments apart from each other, noise only on contexts, exact resumption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTJForCausalLM

from config.parsing import load_preset
from training.model import Magma
from training.world.documents import Document, Writer
from training.world.text import Batch, TextRun, attention_mask, collate, text_loss, train_text
from utils.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("models/world")
RUN = TextRun(steps=4, batch=2, warmup=2, save_every=2)


def small_lm(seed: int = 0) -> GPTJForCausalLM:
    """A language model of two narrow layers."""
    config = load_preset("world")
    config.transformer.ff_adapter.mode = None
    config.transformer.hidden_size, config.transformer.layers = 48, 2
    config.transformer.attention.heads, config.transformer.attention.rotary_dim = 3, 8
    torch.manual_seed(seed)
    return Magma(config).lm


@pytest.fixture
def batch() -> Batch:
    """Two documents."""
    writer = Writer(TOKENIZER)
    documents = [writer.document(np.random.default_rng(seed)) for seed in (1, 2)]
    return collate(documents, writer.end)


def alone(lm: GPTJForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a text by itself, at its natural positions."""
    return lm(input_ids=ids[None], use_cache=False).logits[0]


@torch.no_grad()
def test_a_segment_is_read_as_if_it_followed_the_context_directly(batch: Batch):
    lm = small_lm().eval()
    together = lm(
        input_ids=batch.ids,
        attention_mask=attention_mask(batch.segments),
        position_ids=batch.positions,
        use_cache=False,
    ).logits
    for row, segments in enumerate(batch.segments):
        for number in (1, int(segments.max())):
            inside = (segments == 0) | (segments == number)
            expected = alone(lm, batch.ids[row, inside])
            torch.testing.assert_close(together[row, inside], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_weighted_mean_over_targets(batch: Batch):
    lm = small_lm().eval()
    total, weight = 0.0, 0.0
    for row, segments in enumerate(batch.segments):
        for number in range(int(segments.max()) + 1):
            inside = (segments == 0) | (segments == number)
            chances = alone(lm, batch.ids[row, inside]).log_softmax(-1)
            ids, weights = batch.ids[row, inside], batch.weights[row, inside]
            own = segments[inside] == number
            for i in range(1, len(ids)):
                if own[i]:
                    total -= float(chances[i - 1, ids[i]] * weights[i])
                    weight += float(weights[i])
    noise = torch.zeros(*batch.ids.shape, 48)
    assert float(text_loss(lm, batch, noise)) == pytest.approx(total / weight, rel=1e-4)


@torch.no_grad()
def test_noise_reaches_contexts_only(batch: Batch):
    lm = small_lm().eval()
    quiet = torch.zeros(*batch.ids.shape, 48)
    outside = torch.randn_like(quiet) * (batch.segments != 0)[..., None]
    inside = torch.randn_like(quiet) * (batch.segments == 0)[..., None]
    loss = float(text_loss(lm, batch, quiet))
    assert float(text_loss(lm, batch, outside)) == loss
    assert float(text_loss(lm, batch, inside)) != loss


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = train_text(small_lm(), TOKENIZER, RUN, tmp_path / "whole.pt")
    original = Writer.document

    def document(self: Writer, rng: np.random.Generator) -> Document:
        calls.append(rng)
        if len(calls) > 3 * RUN.batch:
            raise Killed
        return original(self, rng)

    calls: list[np.random.Generator] = []
    monkeypatch.setattr(Writer, "document", document)
    with pytest.raises(Killed):
        train_text(small_lm(), TOKENIZER, RUN, tmp_path / "text.pt")
    monkeypatch.undo()
    # The third step was lost: checkpoints are written every second one.
    rest = train_text(small_lm(seed=1), TOKENIZER, RUN, tmp_path / "text.pt")
    assert rest == losses[2:]


def test_training_on_text_lowers_the_loss(tmp_path: Path):
    run = TextRun(steps=20, batch=2, warmup=4, lr=5e-3, save_every=100)
    losses = train_text(small_lm(), TOKENIZER, run, tmp_path / "text.pt")
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
