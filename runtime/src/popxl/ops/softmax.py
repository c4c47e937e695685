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


# The gradient of a loss of a softmax in one step: neither divides by small probabilities.
define(OpDef("SoftmaxGradDirect", like_last, flops=lambda ins, outs, attrs: 2 * outs[0].nelms))


@gradient("Softmax")
def _gradients(site: GradSite) -> Grads:
    axis = site.attrs["axis"]

    def grad() -> Tensor:
        upstream, probs = site.grad(), site.output()
        loss = upstream._value.producer
        last = axis == probs.rank - 1
        if last and loss is not None and loss.kind == "NllGrad" and not loss.attrs["log_prob"]:
            inputs = [Tensor._from_value(value) for value in loss.inputs if value is not None]
            if inputs[2] == probs:
                return gradient_op("SoftmaxGradDirect", *inputs, **loss.attrs)
        return gradient_op("SoftmaxGrad", upstream, probs, axis=axis)

    return [grad]
