"""Cross entropy of logits whose classes are cut over replicas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import popxl
from popart import popart_exception
from popxl import ReplicaGrouping, Tensor, ops
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op
from popxl_torch.ir.opdef import OpDef, define, same

__all__ = ["cross_entropy_sharded_loss"]

REDUCTION_TYPE = Literal["mean", "sum", "none"]
_REDUCTIONS = ("mean", "sum", "none")


def cross_entropy_sharded_loss(
    logits: Tensor,
    indices: Tensor,
    ignore_index: Tensor | None = None,
    replica_grouping: ReplicaGrouping | None = None,
    reduction: REDUCTION_TYPE = "mean",
    available_memory_proportion: float = 0.4,
) -> Tensor:
    """The loss, equal on all replicas of the group.

    Args:
        logits: (samples, classes / group size), this replica's classes.
        indices: (samples,), the true classes less this replica's first class; outside of its
            classes the true class is another replica's.
        ignore_index: tensor of the same coordinates; samples with this index do not count.
        replica_grouping: replicas that share the classes (default all).
        reduction: "mean", "sum" or "none".
        available_memory_proportion: no effect.

    Returns:
        A scalar, or (samples,) without reduction, in the dtype of the logits.

    Raises:
        popart_exception: wrong ranks or numbers of samples.
        ValueError: another reduction.
    """
    if logits.rank != 2 or indices.rank != 1 or logits.shape[0] != indices.shape[0]:
        raise popart_exception(
            "cross_entropy_sharded_loss: expected logits (samples, classes) and indices (samples,),"
            f" got {logits.shape} and {indices.shape}"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"Not a valid reduction: {reduction!r}. Choose from {_REDUCTIONS}.")

    def reduce(t: Tensor, op: str) -> Tensor:
        return ops.collectives.replicated_all_reduce(t, op, replica_grouping)

    loss = losses(logits, indices, reduce)
    counted = None
    if ignore_index is not None:
        counted = ops.cast(ops.logical_not(ops.equal(indices, ignore_index)), loss.dtype)
        loss = loss * counted
    if reduction == "none":
        return loss
    if reduction == "sum":
        return ops.sum(loss)
    return ops.mean(loss) if counted is None else ops.sum(loss) / ops.sum(counted)


def losses(
    logits: Tensor,
    indices: Tensor,
    reduce: Callable[[Tensor, str], Tensor],
    parts: Sequence[Tensor] | None = None,
) -> Tensor:
    """The loss of each sample, (samples,), with a gradient by the logits.

    Args:
        logits: (samples, classes).
        indices: (samples,); outside of the classes the loss is 0.
        reduce: makes "max" and "add" of all classes from those of the logits' classes.
        parts: tensors that the logits consist of, class by class (default: the logits).
    """
    z = logits - reduce(ops.max(logits, axis=1, keepdims=True), "max")
    normaliser = reduce(ops.sum(ops.exp(z), axis=1, keepdims=True), "add")
    negative_log_probs = ops.log(normaliser) - z
    here = _here(indices, 0, logits.shape[1])
    zero = popxl.constant(0, logits.dtype, "zero")
    owned = ops.sum(ops.where(here, negative_log_probs, zero), axis=1)
    inputs = [reduce(owned, "add"), negative_log_probs, indices, *(parts or [logits])]
    return _create_op("CrossEntropySharded", inputs, {}, ["cross_entropy_sharded_loss"])[0]


def _here(indices: Tensor, first: int, last: int) -> Tensor:
    """(samples, last - first): whether each of these classes is the true one."""
    numbers = popxl.constant(np.arange(first, last)[None], indices.dtype, "classes")
    return ops.equal(indices.reshape((-1, 1)), numbers)


# The first input, with the gradients that it has by those after the third one.
define(OpDef("CrossEntropySharded", same))


@gradient("CrossEntropySharded")
def _gradients(site: GradSite) -> Grads:
    ends = np.cumsum([0, *(site.in_spec(at).shape[1] for at in range(3, len(site.op.inputs)))])

    def of_part(first: int, last: int) -> Tensor:
        negative_log_probs = site.input(1)[:, first:last]
        true = ops.cast(_here(site.input(2), first, last), negative_log_probs.dtype)
        slope = ops.exp(-negative_log_probs) - true
        return slope * site.grad().reshape((-1, 1))

    parts = itertools.pairwise(int(end) for end in ends)
    return [None, None, None, *(partial(of_part, *part) for part in parts)]
