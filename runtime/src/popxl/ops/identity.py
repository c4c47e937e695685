"""Copies."""

from __future__ import annotations

from typing import Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("Identity", same, moves_data=True))


@op_debug_context
def identity(t: Tensor, output_name: Optional[str] = None) -> Tensor:
    """A copy of ``t`` under another name.

    Args:
        t: any shape and dtype.
        output_name: default ``identity_<name of t>``.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    return _create_op("Identity", [t], names=[output_name or f"identity_{t.name}"])[0]


rename = identity


@gradient("Identity")
def _gradients(site: GradSite) -> Grads:
    return [site.grad]
