"""Test for finite numbers."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.identity import identity
from popxl.ops.isinf import isinf
from popxl.ops.isnan import isnan
from popxl.ops.logical_not import logical_not
from popxl.ops.logical_or import logical_or
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


@op_debug_context
def isfinite(t: Tensor) -> Tensor:
    """True where ``t`` is neither NaN nor infinite.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    return identity(logical_not(logical_or(isnan(t), isinf(t))), "isfinite_out")
