"""Step two: the encoder learns which things captions name, in place of CLIP's pre-training.

MAGMA starts from an encoder that CLIP trained on pictures and captions. Here the nouns of a
caption are the target. Each of the encoder's positions holds one thing of a kind with some
probability, independently of the others, so the number of things has a Poisson binomial
distribution (S. D. Poisson, 1837), and the loss is the caption's count under it. It is smallest
where each thing has one position for itself, as words have: what a language model can count.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from training.resnet import ModifiedResNet
from training.world.album import Album
from training.world.kinds import COUNTS, KINDS, PLACES
from training.world.stage import adamw, resume, save, set_rates

_BRANCH_SCALE = 0.2  # of a fresh residual block's last norm: blocks start near their shortcuts
_START_LOGIT = -4.0  # of a thing at a position: few things at first
_NEVER = -1e4  # a logarithm whose exponential is zero, without infinities in gradients


@dataclass(frozen=True)
class EncoderRun:
    """Settings of the encoder's training.

    Attributes:
        steps: optimiser steps.
        batch: pictures per step.
        lr: peak learning rate; a linear warm-up, then a cosine.
        warmup: steps until the peak.
        weight_decay: of convolutions and matrices.
        seed: of weights and draws.
        save_every: steps between checkpoints.
    """

    steps: int = 1200
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.02
    seed: int = 3
    save_every: int = 100


def log_counts(logits: torch.Tensor, most: int) -> torch.Tensor:
    """How probable each number of independent events is, by adding one event after the other.

    Args:
        logits: [b, events, kinds], of each event.
        most: the largest number of interest.

    Returns:
        [b, kinds, most + 1]: log-probabilities of 0, 1, ... events.
    """
    yes, no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    never = torch.full_like(logits[:, 0], _NEVER)
    counts = [torch.zeros_like(never)] + [never] * most
    for event_yes, event_no in zip(yes.unbind(1), no.unbind(1), strict=True):
        counts = [counts[0] + event_no] + [
            torch.logaddexp(same + event_no, fewer + event_yes)
            for fewer, same in itertools.pairwise(counts)
        ]
    return torch.stack(counts, dim=-1)


class NounCounter(nn.Module):
    """Encoder and heads: pictures [b, 3, y, x] -> log-probabilities of what captions name.

    These are of counts, [b, kinds, 0 ... most], and of places, [b, places], unnormalised.
    """

    def __init__(self, encoder: ModifiedResNet, channels: int) -> None:
        """Puts heads on an encoder and gives it fresh weights that train well."""
        super().__init__()
        self.encoder = encoder
        self.things = nn.Linear(channels, len(KINDS))
        self.place = nn.Linear(channels, len(PLACES))
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name.startswith("layer") and name.endswith("bn3"):
                nn.init.constant_(module.weight, _BRANCH_SCALE)
        for head in (self.things, self.place):
            nn.init.normal_(head.weight, std=0.01)
        nn.init.constant_(self.things.bias, _START_LOGIT)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            features = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        features = features.flatten(2).transpose(1, 2).float()
        counts = log_counts(self.things(features), len(COUNTS))
        return counts, self.place(features.mean(1))


def noun_targets(album: Album) -> tuple[torch.Tensor, torch.Tensor]:
    """What captions name: counts [n, kinds] and the number of the place [n]."""
    counts = torch.zeros(len(album), len(KINDS), dtype=torch.long)
    kinds, places = list(KINDS), list(PLACES)
    for row, scene in zip(counts, album.scenes, strict=True):
        for group in scene.groups:
            row[kinds.index(group.kind)] = group.count
    return counts, torch.tensor([places.index(scene.place) for scene in album.scenes])


def train_encoder(
    encoder: ModifiedResNet, channels: int, album: Album, run: EncoderRun, checkpoint: Path
) -> list[float]:
    """Trains an encoder on the nouns of captions; continues from ``checkpoint`` if it is there.

    Args:
        encoder: changed in place.
        channels: of its output.
        album: pictures and their scenes.
        run: settings.
        checkpoint: file of the run's state.

    Returns:
        The losses of this process's steps.
    """
    torch.manual_seed(run.seed)
    model = NounCounter(encoder, channels).train()
    optimiser = adamw(model.parameters(), run.lr, run.weight_decay)
    start = resume(checkpoint, model, [optimiser])
    counts, places = noun_targets(album)
    losses = []
    bar = tqdm(range(start, run.steps), "encoder", run.steps, initial=start, disable=None)
    for step in bar:
        set_rates([optimiser], step, run.steps, run.warmup, floor=0.02)
        chosen = np.random.default_rng([run.seed, step]).integers(len(album), size=run.batch)
        numbers, place = model(album.pixels(chosen.tolist()))
        found = numbers.gather(2, counts[chosen][..., None])
        loss = nn.functional.cross_entropy(place, places[chosen]) - found.sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            save(checkpoint, model, [optimiser], step + 1)
    return losses
