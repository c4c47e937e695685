"""Test for infinity."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("IsInf", comparison)


@op_debug_context
def isinf(t: Tensor) -> Tensor:
    """True where ``t`` is plus or minus infinity.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("IsInf", t, "isinf_out")
