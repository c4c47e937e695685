"""Addition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, elementwise
from popxl_torch.ir.records import Spec


def _infer_in_place(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """The left side's; dtypes must be equal and shapes broadcast, one way or the other."""
    elementwise(specs, attrs)
    return [specs[0]]


define(OpDef("Add", elementwise, flops=lambda ins, outs, attrs: outs[0].nelms))
define(OpDef("AddLhsInplace", _infer_in_place, pure="Add", writes=0))
define(OpDef("Sum", elementwise, flops=lambda ins, outs, attrs: (len(ins) - 1) * outs[0].nelms))


@op_debug_context
def add(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Sum of two tensors, element by element, with NumPy's broadcasting.

    Args:
        lhs: any shape.
        rhs: same dtype, broadcastable with ``lhs``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    check_in_graph(get_current_context().graph, lhs=lhs, rhs=rhs)
    check_tensor_ipu_and_tile_set(lhs=lhs, rhs=rhs)
    return _create_op("Add", [lhs, rhs], names=["add_out"])[0]


@op_debug_context
def add_(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Adds ``rhs`` to ``lhs`` in place; returns an alias of ``lhs``. See :func:`add`.

    That ``rhs`` fits into ``lhs`` is checked by the session, not here.
    """
    check_in_graph(get_current_context().graph, lhs=lhs, rhs=rhs)
    check_tensor_ipu_and_tile_set(lhs=lhs, rhs=rhs)
    return _create_op("AddLhsInplace", [lhs, rhs], names=["add_lhs_inplace_out"])[0]


def add_all(ts: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors of one shape and dtype, as one op; a single one itself."""
    return ts[0] if len(ts) == 1 else _create_op("Sum", ts, names=["sum_out"])[0]


@gradient("Sum")
def _gradients_of_sum(site: GradSite) -> Grads:
    return [site.grad] * len(site.op.inputs)


@gradient("Add")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad(), lambda: site.grad()]
