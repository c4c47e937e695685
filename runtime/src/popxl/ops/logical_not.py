"""Logical not."""

from __future__ import annotations

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import cast_if_needed, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("Not", comparison)


@op_debug_context
def logical_not(t: Tensor) -> Tensor:
    """True where ``t`` is not; ``t`` is cast to bool.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    return unary("Not", cast_if_needed(t, dtypes.bool), "not_out")


@gradient("Not")
def _gradients(site: GradSite) -> Grads:
    raise site.refusal("Not does not have a valid grad op")
