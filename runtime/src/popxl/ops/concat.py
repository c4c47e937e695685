"""Joining tensors along an axis."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Iterable

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.slice import slice
from popxl.ops.utils import (
    _create_op,
    check_in_graph,
    check_tensor_ipu_and_tile_set,
    handle_negative_axis,
)
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    first = specs[0].shape
    axis = checked_axis(attrs["axis"], len(first), "concat axis")
    for spec in specs[1:]:
        sizes = spec.shape
        same_rest = first[:axis] == sizes[:axis] and first[axis + 1 :] == sizes[axis + 1 :]
        if len(sizes) != len(first) or not same_rest:
            raise popart_exception(
                f"concat of {list(first)} and {list(sizes)}: shapes may differ on axis {axis} only"
            )
    total = sum(spec.shape[axis] for spec in specs)
    return [Spec((*first[:axis], total, *first[axis + 1 :]), specs[0].dtype)]


define(OpDef("Concat", _infer, moves_data=True))
define(OpDef("ConcatInplace", _infer, pure="Concat", view=True, moves_data=True))


def _concat(kind: str, ts: Iterable[Tensor], axis: int) -> Tensor:
    tensors = list(ts)
    if not tensors:
        raise ValueError("concat needs at least one tensor.")
    dtypes = {t.dtype.name: None for t in tensors}
    if len(dtypes) > 1:
        raise TypeError(f"All tensors of a concat must have the same dtype, not {list(dtypes)}.")
    check_in_graph(get_current_context().graph, *tensors)
    check_tensor_ipu_and_tile_set(*tensors)
    axis = handle_negative_axis(tensors[0], axis)
    return _create_op(kind, tensors, {"axis": axis}, ["concat_out"])[0]


@op_debug_context
def concat(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after the other along ``axis``.

    Args:
        ts: at least one tensor; equal dtypes, equal shapes except on ``axis``.
        axis: negative ones count from the end.

    Raises:
        AttributeError: an entry is not a Tensor.
        TypeError: the dtypes differ.
        ValueError: ``ts`` is empty, or a tensor is not in the current graph.
        popart_exception: the shapes do not fit, or there is no such axis.
    """
    return _concat("Concat", ts, axis)


@op_debug_context
def concat_(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """As :func:`concat`, but the result is an alias of all the tensors at once."""
    return _concat("ConcatInplace", ts, axis)


@gradient("Concat")
def _gradients(site: GradSite) -> Grads:
    axis, sizes = site.attrs["axis"], [value.spec.shape for value in site.op.inputs if value]

    def part(index: int) -> Tensor:
        start = sum(shape[axis] for shape in sizes[:index])
        return slice(site.grad(), start, start + sizes[index][axis], axis=axis)

    return [functools.partial(part, index) for index in range(len(sizes))]
