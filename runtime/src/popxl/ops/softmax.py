"""Softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last
from popxl.ops.utils import _create_op, check_in_graph, handle_negative_axis
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    checked_axis(attrs["axis"], len(specs[0].shape), "softmax axis")
    return [specs[0]]


define(OpDef("Softmax", _infer, flops=lambda ins, outs, attrs: 5 * outs[0].nelms))


@op_debug_context
def softmax(t: Tensor, axis: int) -> Tensor:
    """exp(t) divided by its sum along ``axis``, in the form that does not overflow.

    Args:
        t: any shape but a scalar.
        axis: negative ones count from the end.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: there is no such axis.
    """
    check_in_graph(get_current_context().graph, t=t)
    axis = handle_negative_axis(t, axis)
    return _create_op("Softmax", [t], {"axis": axis}, ["softmax_out"])[0]


define(OpDef("SoftmaxGrad", like_last, flops=lambda ins, outs, attrs: 4 * outs[0].nelms))


@gradient("Softmax")
def _gradients(site: GradSite) -> Grads:
    axis = site.attrs["axis"]
    return [lambda: gradient_op("SoftmaxGrad", site.grad(), site.output(), axis=axis)]
