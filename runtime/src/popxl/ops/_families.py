"""What the element-wise ops and the reductions have in common: checks, op creation, shape rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popxl.context import get_current_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define, elementwise, same
from popxl_torch.ir.records import Spec


def _one_per_output(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return outs[0].nelms


def _one_per_input(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return ins[0].nelms


def define_elementwise(kind: str, infer: Any = elementwise, inplace: str | None = None) -> None:
    """Declare an element-wise kind and, if named, the kind that writes its first input."""
    define(OpDef(kind, infer, flops=_one_per_output))
    if inplace is not None:
        define(OpDef(inplace, same, pure=kind, writes=0))


def unary(kind: str, t: Tensor, name: str, attrs: Mapping[str, Any] | None = None) -> Tensor:
    """An op of one tensor.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    return _create_op(kind, [t], attrs, [name])[0]


def binary(kind: str, name: str, **operands: Tensor) -> Tensor:
    """An op of several tensors, whose argument names are those of ``operands``.

    Raises:
        TypeError: an operand is not a Tensor.
        ValueError: an operand is not in the current graph, or they lie on different IPUs.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    check_in_graph(get_current_context().graph, **operands)
    check_tensor_ipu_and_tile_set(**operands)
    return _create_op(kind, list(operands.values()), names=[name])[0]


def checked_axis(axis: int, rank: int, what: str) -> int:
    """``axis``, which counts from the front; popart_exception if there is no such axis."""
    if not 0 <= axis < rank:
        shown = axis if axis >= 0 else axis - rank
        raise popart_exception(f"{what} {shown} is out of range for a tensor of rank {rank}")
    return axis


def define_reduction(kind: str) -> None:
    """Declare a reduction over the attributes ``axes`` and ``keepdims``."""
    define(OpDef(kind, infer_reduction, flops=_one_per_input))


def reduced_shape(shape: tuple[int, ...], axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
    """``shape`` without ``axes``, or with length 1 there."""
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def infer_reduction(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule of reductions: the input's dtype, its shape without the axes."""
    (spec,) = specs
    rank = len(spec.shape)
    for axis in attrs["axes"]:
        checked_axis(axis, rank, "reduction axis")
    if len(set(attrs["axes"])) != len(attrs["axes"]):
        raise popart_exception(f"reduction axes {attrs['axes']} repeat an axis")
    return [Spec(reduced_shape(spec.shape, attrs["axes"], attrs["keepdims"]), spec.dtype)]


def reduction(
    kind: str, t: Tensor, axis: int | Iterable[int] | None, keepdims: bool, *names: str
) -> Tensor:
    """A reduction of ``t``; returns its first output.

    Args:
        kind: op kind declared with :func:`define_reduction`.
        t: any shape.
        axis: axis or axes, negative ones count from the end; None reduces all, () none.
        keepdims: keep reduced axes with length 1.
        names: names of the outputs.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
        popart_exception: an axis is out of range or repeated.
    """
    check_in_graph(get_current_context().graph, t=t)
    if axis is None:
        axes = tuple(range(t.rank))
    else:
        given = (axis,) if isinstance(axis, int) else tuple(axis)
        axes = tuple(a + t.rank if a < 0 else a for a in given)
    return _create_op(kind, [t], {"axes": axes, "keepdims": bool(keepdims)}, names)[0]
