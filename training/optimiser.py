"""The optimiser: which parameters it changes, in which groups, at which learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import TrainConfig
from training.model import Magma

BETAS = (0.9, 0.95)


def freeze(model: Magma, config: TrainConfig) -> None:
    """Marks what the run trains: adapters, encoder, projection and layer norm, or the text part.

    On text alone the image prefix has no part in the loss, and it stays as it is.
    """
    on_text = bool(config.train_text_files)
    model.image_prefix.requires_grad_(not on_text)
    if config.freeze_img_encoder:
        model.image_prefix.enc.requires_grad_(False)
    for name, parameter in model.lm.named_parameters():
        parameter.requires_grad_(not config.freeze_lm or ".adapter" in name)


def make_optimiser(model: Magma, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters.

    Each group carries ``peak_lr``, from which `set_learning_rate` computes its rate: the encoder
    has its own. Only matrices decay, and no embeddings.
    """
    no_decay = _names_without_decay(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_encoder = name.startswith("image_prefix.enc.")
        own_rate = in_encoder and config.image_enc_lr is not None
        rate = config.image_enc_lr if own_rate else config.lr
        decay = 0.0 if name in no_decay else config.weight_decay
        groups.setdefault((float(rate or 0.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=BETAS,
    )


def _names_without_decay(model: Magma) -> set[str]:
    kinds = (nn.LayerNorm, nn.BatchNorm2d, nn.Embedding)
    names = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, kinds) or name in ("bias", "adapter_scale")
    }
    return names


def learning_rate(step: int, peak: float, config: TrainConfig) -> float:
    """The rate of a step, counted from 0: a logarithmic rise, then level or a line downwards.

    The rise is that of DeepSpeed's WarmupLR: min + (peak − min) · ln(k + 1) / ln(warm-up steps).
    """
    low, warmup = config.min_lr, config.warmup_num_steps
    if step < warmup:
        share = math.log(step + 1) / math.log(warmup) if warmup > 1 else 1.0
    elif config.lr_decay_iters is None:
        share = 1.0
    else:
        share = max(0.0, (config.lr_decay_iters - step) / (config.lr_decay_iters - warmup))
    return low + (peak - low) * share


def set_learning_rate(optimiser: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Sets the rate of every group for a step."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, group["peak_lr"], config)
