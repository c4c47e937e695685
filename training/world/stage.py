"""What training the text and the encoder share: groups, rates, and going on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from training.optimiser import BETAS
from utils.files import atomic_file

Optimisers = Sequence[torch.optim.Optimizer]


def adamw(
    parameters: Iterable[nn.Parameter], peak_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels alone."""
    chosen = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in chosen if (p.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, weight_decay), (False, 0.0))
        ],
        lr=peak_lr,
        betas=BETAS,
    )


def set_rates(optimisers: Optimisers, step: int, steps: int, warmup: int, floor: float) -> None:
    """Sets every group's rate for a step, counted from 0.

    A linear rise over ``warmup`` steps to the rate that the group was made with, times a cosine
    from 1 down to ``floor`` over all ``steps``.
    """
    share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            peak = group.setdefault("peak_lr", group["lr"])
            group["lr"] = peak * min(1.0, (step + 1) / warmup) * share


def resume(checkpoint: Path, model: nn.Module, optimisers: Optimisers) -> int:
    """Takes weights and moments of a checkpoint, if there is one.

    Returns:
        The number of steps that are done.
    """
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, moments in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(moments)
    return int(state["step"])


def save(checkpoint: Path, model: nn.Module, optimisers: Optimisers, step: int) -> None:
    """Writes what :func:`resume` takes."""
    moments = [optimiser.state_dict() for optimiser in optimisers]
    with atomic_file(checkpoint) as file:
        torch.save({"model": model.state_dict(), "optimisers": moments, "step": step}, file)
