"""Step one: a small GPT-J learns the world from text alone.

Its context is a description in words. The image prefix takes the context's place later, so noise on
the context's embeddings prepares the model for positions that are no exact words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import GPT2Tokenizer, GPTJForCausalLM

from training.world.documents import Document, Writer
from training.world.stage import adamw, resume, save, set_rates

NO_SEGMENT = -1
"""Segment number of padding."""


@dataclass(frozen=True)
class TextRun:
    """Settings of the text training.

    Attributes:
        steps: optimiser steps.
        batch: documents per step.
        lr: peak learning rate; a linear warm-up, then a cosine down to a twentieth.
        matrix_lr: the same for the matrices of the blocks.
        warmup: steps until the peak.
        weight_decay: of matrices.
        noise: largest standard deviation of the noise on contexts, in units of the embedding's RMS.
        noisy: share of the documents with noise.
        seed: of weights and documents.
        save_every: steps between checkpoints.
    """

    steps: int = 4500
    batch: int = 16
    lr: float = 2e-3
    matrix_lr: float = 2e-2
    warmup: int = 150
    weight_decay: float = 0.05
    noise: float = 0.5
    noisy: float = 0.6
    seed: int = 0
    save_every: int = 200


@dataclass(frozen=True)
class Batch:
    """Documents padded to one length, each tensor [b, s]; see `Document`."""

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    weights: torch.Tensor


def collate(documents: Sequence[Document], pad: int) -> Batch:
    """Joins documents; padding belongs to no segment and has no weight."""
    length = max(len(document.ids) for document in documents)

    def rows(name: str, fill: int) -> torch.Tensor:
        arrays = [getattr(document, name) for document in documents]
        padded = [np.pad(a, (0, length - len(a)), constant_values=fill) for a in arrays]
        return torch.from_numpy(np.stack(padded))

    return Batch(
        rows("ids", pad), rows("positions", 0), rows("segments", NO_SEGMENT), rows("weights", 0)
    )


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """What each token may attend to: earlier ones of the context and of its own segment.

    Args:
        segments: [b, s].

    Returns:
        [b, 1, s, s], 0 where allowed and a large negative number elsewhere.
    """
    s = segments.shape[1]
    causal = torch.ones(s, s, dtype=torch.bool).tril()
    of_context = (segments == 0)[:, None, :]
    same = segments[:, None, :] == segments[:, :, None]
    allowed = causal & (of_context | same)
    return torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None]


def text_loss(lm: GPTJForCausalLM, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, weighted by the documents' weights.

    Args:
        lm: the language model.
        batch: documents.
        noise: [b, s, h], added to the embeddings of contexts.
    """
    in_context = (batch.segments == 0)[..., None]
    x = lm.transformer.wte(batch.ids) + noise * in_context
    hidden = lm.transformer(
        inputs_embeds=x,
        attention_mask=attention_mask(batch.segments),
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    weights = batch.weights[:, 1:]
    chosen = weights > 0
    logits = lm.lm_head(hidden[:, :-1][chosen]).float()
    losses = nn.functional.cross_entropy(logits, batch.ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


def train_text(
    lm: GPTJForCausalLM, tokenizer: GPT2Tokenizer, run: TextRun, checkpoint: Path
) -> list[float]:
    """Trains a language model on documents; continues from ``checkpoint`` if it is there.

    Args:
        lm: the model with its starting weights, changed in place.
        tokenizer: the world's.
        run: settings.
        checkpoint: file of the run's state.

    Returns:
        The losses of this process's steps.
    """
    optimisers = _optimisers(lm, run)
    step = resume(checkpoint, lm, optimisers)
    writer = Writer(tokenizer)
    losses: list[float] = []
    bar = tqdm(range(step, run.steps), "text", run.steps, initial=step, unit="step", disable=None)
    for step in bar:
        set_rates(optimisers, step, run.steps, run.warmup, floor=0.05)
        rngs = [np.random.default_rng([run.seed, step, i]) for i in range(run.batch)]
        batch = collate([writer.document(rng) for rng in rngs], writer.end)
        noise = _noise(lm, batch, run, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = text_loss(lm, batch, noise)
        lm.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            save(checkpoint, lm, optimisers, step + 1)
    return losses


def _optimisers(lm: GPTJForCausalLM, run: TextRun) -> list[torch.optim.Optimizer]:
    """Muon (K. Jordan et al., 2024) for the matrices of the blocks, AdamW for the rest."""
    in_blocks = [p for p in lm.transformer.h.parameters() if p.ndim > 1]
    known = {id(p) for p in in_blocks}
    rest = [p for p in lm.parameters() if id(p) not in known]
    muon = torch.optim.Muon(
        in_blocks, lr=run.matrix_lr, weight_decay=run.weight_decay, adjust_lr_fn="original"
    )
    return [muon, adamw(rest, run.lr, run.weight_decay)]


def _noise(lm: GPTJForCausalLM, batch: Batch, run: TextRun, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    table = lm.transformer.wte.weight.detach()
    rows = len(batch.ids)
    strength = torch.rand(rows, 1, 1, generator=generator) * run.noise
    strength *= torch.rand(rows, 1, 1, generator=generator) < run.noisy
    noise = torch.randn(*batch.ids.shape, table.shape[1], generator=generator)
    return noise * strength * table.square().mean().sqrt()
