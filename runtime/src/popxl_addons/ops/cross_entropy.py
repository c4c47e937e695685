"""Cross entropy from logits."""

from __future__ import annotations

from typing import Literal

import popxl
from popxl import ops

__all__ = ["cross_entropy", "cross_entropy_with_grad"]

REDUCTION_TYPE = Literal["mean", "sum", "none"]


def cross_entropy(
    x: popxl.Tensor,
    labels: popxl.Tensor,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> popxl.Tensor:
    """Negative log-likelihood of the labels under the softmax of the last axis.

    Args:
        x: (*dims, classes), logits.
        labels: (*dims).
        ignore_index: samples with this label do not count.
        reduction: "mean", "sum" or "none".
    """
    probs = ops.softmax(x, axis=-1)
    return ops.nll_loss(probs, labels, ignore_index=ignore_index, reduction=reduction)


def cross_entropy_with_grad(
    x: popxl.Tensor,
    labels: popxl.Tensor,
    loss_scaling: float | popxl.Tensor = 1,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """`cross_entropy` and its gradient.

    Args:
        loss_scaling: factor of the gradient; the loss is not scaled.

    Returns:
        The loss, and the gradient with the shape and dtype of `x`.
    """
    if not isinstance(loss_scaling, popxl.Tensor):
        loss_scaling = popxl.constant(loss_scaling, popxl.float32, "loss_scaling")
    probs = ops.softmax(x, axis=-1)
    return ops.nll_loss_with_softmax_grad(
        probs, labels, loss_scaling, ignore_index=ignore_index, reduction=reduction
    )
