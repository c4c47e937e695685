"""Group and layer normalisation."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

_NAMES = ["group_norm_out", "group_norm_mean", "group_norm_inv_std_dev"]


_GRAD_NAMES = ["group_norm_grad", "group_norm_weight_grad", "group_norm_bias_grad"]


def _infer_grads(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    _, t, weight = specs
    return [t, weight, weight]


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t = specs[0]
    if len(t.shape) < 2:
        raise popart_exception(f"group_norm needs (N, C, *rest), not {t}")
    side = Spec((t.shape[0] * attrs["num_groups"],), t.dtype)
    return [t, side, side]


define(OpDef("GroupNormalization", _infer, flops=lambda ins, outs, attrs: 8 * outs[0].nelms))


@op_debug_context
def group_norm(
    t: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float = 1e-5
) -> Tensor:
    """Normalises over groups of consecutive channels and all further axes, per sample.

    Args:
        t: (N, C, *rest).
        weight: (C,), times the normalised values.
        bias: (C,), added.
        num_groups: divides C.
        eps: added to the (biased) variance.

    Raises:
        popart_exception: ``t`` of rank 0 or 1. Other shapes are checked when the session compiles.
    """
    check_in_graph(get_current_context().graph, t=t, weight=weight, bias=bias)
    check_tensor_ipu_and_tile_set(t=t, weight=weight, bias=bias)
    attrs = {"num_groups": int(num_groups), "eps": float(eps)}
    return _create_op("GroupNormalization", [t, weight, bias], attrs, _NAMES)[0]


@op_debug_context
def layer_norm(t: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """:func:`group_norm` with one group.

    Axis 1 has the weights and every axis but the first is normalised over: the familiar layer norm
    for (rows, hidden) only.
    """
    return group_norm(t, weight, bias, 1, eps)


define(
    OpDef("GroupNormalizationGrad", _infer_grads, flops=lambda ins, outs, attrs: 12 * outs[0].nelms)
)


@gradient("GroupNormalization")
def _gradients(site: GradSite) -> Grads:
    if any(site._grads[1:]):
        raise site.refusal("the statistics of a normalisation have no gradient")

    @functools.cache
    def all_three() -> list[Tensor]:
        inputs = [site.grad(), site.input(0), site.input(1)]
        return _create_op("GroupNormalizationGrad", inputs, site.attrs, _GRAD_NAMES)

    return [lambda: all_three()[0], lambda: all_three()[1], lambda: all_three()[2]]
