"""Losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from popxl_torch.ir.records import Spec
from popxl_torch.kernels.registry import Site, kernel

_SMALLEST = {"float16": 6.1e-5}
_SMALLEST_ELSE = 1e-7


def smallest_probability(spec: Spec) -> float:
    """What smaller probabilities of this dtype count as."""
    return _SMALLEST.get(spec.dtype, _SMALLEST_ELSE)


def label_counts(attrs: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Whether each label counts, as it is not the one to ignore."""
    ignored = attrs["ignore_index"]
    return torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored


def _losses(
    site: Site, probs: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(negative log-likelihood, whether it counts) per label."""
    spec = site.ins[0]
    assert spec is not None
    counts = label_counts(site.attrs, labels)
    index = torch.where(counts, labels, 0).long().unsqueeze(-1)
    chosen = probs.gather(-1, index).squeeze(-1)
    if not site.attrs["log_prob"]:
        chosen = chosen.clamp(min=smallest_probability(spec)).log()
    return torch.where(counts, -chosen, torch.zeros_like(chosen)), counts


def _reduced(site: Site, losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    if site.attrs["reduction"] == "none":
        return losses
    total = losses.sum()
    return total / counts.sum().clamp(min=1) if site.attrs["reduction"] == "mean" else total


@kernel("Nll", batched=False)
def nll_loss(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """Reduced negative log-likelihood."""

    def run(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _reduced(site, *_losses(site, probs, labels))

    return run


@kernel("NlllWithSoftmaxGradDirect", batched=False)
def nll_loss_with_softmax_grad(
    site: Site, lead: int
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The loss, and its gradient with respect to the input of the softmax that made ``probs``."""
    reduction = site.attrs["reduction"]

    def run(
        probs: torch.Tensor, labels: torch.Tensor, loss_grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, counts = _losses(site, probs, labels)
        classes = torch.arange(probs.shape[-1], device=probs.device)
        grad = probs - (classes == labels.unsqueeze(-1)).to(probs.dtype)
        grad = torch.where(counts.unsqueeze(-1), grad, torch.zeros_like(grad))
        if reduction == "mean":
            grad = grad / counts.sum().clamp(min=1)
        each = loss_grad.unsqueeze(-1) if loss_grad.shape == labels.shape else loss_grad
        return _reduced(site, losses, counts), grad * each

    return run
