"""Other shapes of the same elements: reshape and flatten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Tuple

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    shape = tuple(attrs["shape"])
    if math.prod(shape) != spec.nelms:
        raise popart_exception(
            f"reshape of {list(spec.shape)} with {spec.nelms} elements to {list(shape)}"
            f" with {math.prod(shape)} elements"
        )
    return [Spec(shape, spec.dtype)]


define(OpDef("Reshape", _infer, moves_data=True))
define(OpDef("ReshapeInplace", _infer, pure="Reshape", view=True, moves_data=True))


def reshape_handle_negative_axis(t: Tensor, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """``shape`` with its -1, if there is one, replaced by the size that is left.

    Raises:
        ValueError: a size of 0 or below -1, or several -1.
    """
    for size in shape:
        if size == 0 or size < -1:
            raise ValueError(f"Invalid shape value in reshape: {size} in {shape}.")
    unknown = shape.count(-1)
    if unknown > 1:
        raise ValueError(f"The shape of a reshape can contain at most one '-1', not {shape}.")
    if not unknown:
        return tuple(shape)
    rest = t.nelms // -math.prod(shape)
    return tuple(rest if size == -1 else size for size in shape)


def _reshape(kind: str, t: Tensor, shape: Tuple[int, ...]) -> Tensor:
    check_in_graph(get_current_context().graph, t=t)
    shape = tuple(int(size) for size in reshape_handle_negative_axis(t, shape))
    return _create_op(kind, [t], {"shape": shape}, [f"{t.name}_reshaped"])[0]


@op_debug_context
def reshape(t: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """The elements of ``t`` in row-major order with another shape.

    Args:
        t: any shape.
        shape: sizes; one may be -1 and is computed.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or a size is 0, below -1, or twice -1.
        popart_exception: the number of elements differs.
    """
    return _reshape("Reshape", t, shape)


@op_debug_context
def reshape_(t: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """As :func:`reshape`, but the result is an alias of ``t``."""
    return _reshape("ReshapeInplace", t, shape)


@op_debug_context
def flatten(t: Tensor) -> Tensor:
    """``t`` as one axis, in row-major order.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    return reshape(t, (t.nelms,))


@op_debug_context
def flatten_(t: Tensor) -> Tensor:
    """As :func:`flatten`, but the result is an alias of ``t``."""
    check_in_graph(get_current_context().graph, t=t)
    return reshape_(t, (t.nelms,))


@gradient("Reshape")
def _gradients(site: GradSite) -> Grads:
    return [lambda: reshape(site.grad(), site.in_spec().shape)]
