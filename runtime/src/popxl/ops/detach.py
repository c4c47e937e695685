"""Values that gradients stop at."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("Detach", same, moves_data=True))
define(OpDef("DetachInplace", same, pure="Detach", view=True, moves_data=True))


@op_debug_context
def detach(t: Tensor) -> Tensor:
    """A copy of ``t`` that autodiff takes no gradient through.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Detach", t, "detach_out")


@op_debug_context
def detach_(t: Tensor) -> Tensor:
    """As :func:`detach`, but the result is an alias of ``t``."""
    return unary("DetachInplace", t, "detach_out")


@gradient("Detach")
def _gradients(site: GradSite) -> Grads:
    return [None]
