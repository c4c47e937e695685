"""Test for NaN."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("IsNaN", comparison)


@op_debug_context
def isnan(t: Tensor) -> Tensor:
    """True where ``t`` is not a number.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("IsNaN", t, "isnan_out")
