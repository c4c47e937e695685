"""The largest or smallest elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Tuple

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, zeros
from popxl.ops.scatter import scatter
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    axis, k = attrs["axis"], attrs["k"]
    if not 0 <= axis < len(spec.shape):
        raise popart_exception(f"topk axis {axis} is out of range for {spec}")
    if not 0 <= k <= spec.shape[axis]:
        raise popart_exception(f"topk: k is {k} but axis {axis} of {spec} has {spec.shape[axis]}")
    shape = (*spec.shape[:axis], k, *spec.shape[axis + 1 :])
    return [Spec(shape, spec.dtype), Spec(shape, "int32")]


define(OpDef("TopK", _infer, flops=lambda ins, outs, attrs: ins[0].nelms))


@op_debug_context
def topk(
    t: Tensor,
    k: int,
    axis: int,
    largest: bool,
    sorted: bool,
    available_memory_proportion: Optional[float] = None,
) -> Tuple[Tensor, Tensor]:
    """The ``k`` largest or smallest elements along ``axis`` and their int32 indices.

    Args:
        t: any shape but a scalar.
        k: how many, at most the size of the axis.
        axis: not negative.
        largest: the largest, else the smallest.
        sorted: in order. They always are; of equal elements the first come first.
        available_memory_proportion: a hint for IPUs.

    Returns:
        Values and indices, of ``t``'s shape with ``k`` at ``axis``.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: ``axis`` is negative or too large, or ``k`` exceeds its size.
    """
    check_in_graph(get_current_context().graph, t=t)
    attrs = {"k": k, "axis": axis, "largest": bool(largest), "sorted": bool(sorted)}
    values, indices = _create_op("TopK", [t], attrs, ["topk_out_value", "topk_out_indices"])
    return values, indices


@gradient("TopK")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        return scatter(zeros(site.in_spec()), site.output(1), site.grad(), site.attrs["axis"])

    return [grad]
