"""Choice between elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient, select
from popxl.ops.logical_not import logical_not
from popxl.ops.utils import cast_if_needed, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import broadcast_shapes, elementwise
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    condition, *choices = specs
    (result,) = elementwise(choices, attrs)
    shape = broadcast_shapes(condition.shape, result.shape)
    return [Spec(shape, result.dtype, result.meta_shape)]


define_elementwise("Where", _infer)


@op_debug_context
def where(condition: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
    """Elements of ``lhs`` where ``condition`` holds, of ``rhs`` elsewhere; all three broadcast.

    Args:
        condition: cast to bool if needed.
        lhs: any shape.
        rhs: same dtype as ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    check_in_graph(get_current_context().graph, condition=condition, lhs=lhs, rhs=rhs)
    check_tensor_ipu_and_tile_set(condition=condition, lhs=lhs, rhs=rhs)
    condition = cast_if_needed(condition, dtypes.bool)
    return binary("Where", "where_out", condition=condition, lhs=lhs, rhs=rhs)


@gradient("Where")
def _gradients(site: GradSite) -> Grads:
    def chosen(lhs: bool) -> Tensor:
        condition = site.input(0)
        return select(condition if lhs else logical_not(condition), site.grad())

    return [None, lambda: chosen(True), lambda: chosen(False)]
