"""Negative log-likelihood of class probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Tuple, Union

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor, constant
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

REDUCTION_TYPE = Literal["mean", "sum", "none"]
REDUCTION_MAP = {"mean": "Mean", "sum": "Sum", "none": "NoReduction"}


def _infer_loss(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    probs, labels = specs[0], specs[1]
    if not probs.shape or labels.shape != probs.shape[:-1]:
        raise popart_exception(
            f"labels need the shape of probs without its last axis: {labels} for {probs}"
        )
    if "int" not in labels.dtype:
        raise popart_exception(f"labels must be integers, not {labels}")
    return [Spec(labels.shape if attrs["reduction"] == "none" else (), probs.dtype)]


def _infer_both(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    return [*_infer_loss(specs, attrs), specs[0]]


define(OpDef("Nll", _infer_loss))
define(OpDef("NlllWithSoftmaxGradDirect", _infer_both))


def _attrs(ignore_index: int | None, reduction: str, log_prob: bool) -> dict[str, Any]:
    if reduction not in REDUCTION_MAP:
        raise ValueError(
            f"Not a valid reduction: {reduction!r}; it must be one of {list(REDUCTION_MAP)}."
        )
    return {"ignore_index": ignore_index, "reduction": reduction, "log_prob": bool(log_prob)}


@op_debug_context
def nll_loss(
    probs: Tensor,
    labels: Tensor,
    ignore_index: Optional[int] = None,
    reduction: REDUCTION_TYPE = "mean",
    log_prob: bool = False,
) -> Tensor:
    """``-log`` of the probability of each label.

    Args:
        probs: (..., classes), probabilities or their logarithms.
        labels: (...), integers.
        ignore_index: label whose elements give 0 and do not count in the mean.
        reduction: ``mean`` over all labels, ``sum``, or ``none``.
        log_prob: whether ``probs`` are logarithms.

    Returns:
        A scalar, or (...) for ``none``; dtype of ``probs``. Probabilities below about 1e-7
        (6.1e-5 for float16) count as that.

    Raises:
        ValueError: another reduction.
        popart_exception: labels of another shape, or that are no integers.
    """
    check_in_graph(get_current_context().graph, probs=probs, labels=labels)
    check_tensor_ipu_and_tile_set(probs=probs, labels=labels)
    attrs = _attrs(ignore_index, reduction, log_prob)
    return _create_op("Nll", [probs, labels], attrs, ["loss"])[0]


@op_debug_context
def nll_loss_with_softmax_grad(
    probs: Tensor,
    labels: Tensor,
    loss_grad: Union[float, Tensor] = 1,
    ignore_index: Optional[int] = None,
    reduction: REDUCTION_TYPE = "mean",
) -> Tuple[Tensor, Tensor]:
    """:func:`nll_loss` of a softmax, and the gradient with respect to the softmax's input.

    Args:
        probs: (..., classes), a result of ``softmax``.
        labels: (...), integers.
        loss_grad: gradient of the loss.
        ignore_index: see :func:`nll_loss`; such elements have gradient 0.
        reduction: see :func:`nll_loss`.

    Returns:
        The loss and ``(probs - onehot) * loss_grad``, divided by the count for ``mean``.
    """
    check_in_graph(get_current_context().graph, probs=probs, labels=labels)
    if not isinstance(loss_grad, Tensor):
        loss_grad = constant(loss_grad, dtypes.float32, "loss_grad")
    check_in_graph(get_current_context().graph, loss_grad=loss_grad)
    check_tensor_ipu_and_tile_set(probs=probs, labels=labels, loss_grad=loss_grad)
    attrs = _attrs(ignore_index, reduction, False)
    names = ["loss", "dx"]
    loss, dx = _create_op("NlllWithSoftmaxGradDirect", [probs, labels, loss_grad], attrs, names)
    return loss, dx


define(OpDef("NllGrad", like_last))


@gradient("Nll")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        return gradient_op("NllGrad", site.grad(), site.input(1), site.input(0), **site.attrs)

    return [grad, None]
