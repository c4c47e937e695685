"""Squared norms for LAMB."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import unary
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

define(
    OpDef(
        "LambSquare",
        lambda specs, attrs: [Spec((), "float32")],
        flops=lambda ins, outs, attrs: 2 * ins[0].nelms,
    )
)


@op_debug_context
def lamb_square(t: Tensor) -> Tensor:
    """Sum of squares of all elements, a float32 scalar also for float16 tensors.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("LambSquare", t, "lamb_square_out")
