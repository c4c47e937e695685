"""Counters that wrap around."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.tensor import Tensor

define_elementwise("IncrementMod", inplace="IncrementModInplace")


@op_debug_context
def increment_mod(t: Tensor, increment: float, modulus: float) -> Tensor:
    """``fmod(t + increment, modulus)`` in the dtype of ``t``, with the sign of ``t + increment``.

    Args:
        t: any shape.
        increment: added to each element.
        modulus: divisor.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    attrs = {"increment": increment, "modulus": modulus}
    return unary("IncrementMod", t, "increment_mod_out", attrs)


@op_debug_context
def increment_mod_(t: Tensor, increment: float, modulus: float) -> Tensor:
    """As :func:`increment_mod`, but in place; returns an alias of ``t``."""
    attrs = {"increment": increment, "modulus": modulus}
    return unary("IncrementModInplace", t, "increment_mod_inplace_out", attrs)
