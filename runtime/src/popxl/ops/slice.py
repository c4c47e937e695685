"""Contiguous ranges of axes, forwards or backwards."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, List, Optional, Tuple, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

INT_MIN = -(2**31)
INT_MAX = 2**31 - 1

Bound = Optional[Union[int, List[Optional[int]]]]


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    ranges = zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
    return [Spec(tuple(len(range(*bounds)) for bounds in ranges), spec.dtype)]


define(OpDef("Slice", _infer, moves_data=True))
define(OpDef("SliceInplace", _infer, pure="Slice", view=True, moves_data=True))


def process_args(
    start: Bound = None,
    stop: Bound = None,
    step: Bound = None,
    axis: Optional[Union[int, List[int]]] = None,
) -> Tuple[List[int], List[int], List[int], List[int]]:
    """Bounds as lists of one entry per axis, with defaults filled in.

    Returns:
        starts, stops, steps, axes. A missing stop is INT_MAX, or INT_MIN for a negative step.

    Raises:
        ValueError: lists of different lengths.
    """
    given = [
        [value] if isinstance(value, int) else None if value is None else list(value)
        for value in (start, stop, step, axis)
    ]
    lengths = {len(value) for value in given if value is not None}
    if len(lengths) > 1:
        raise ValueError(
            "start, stop, step and axis must have same length:"
            f" start={start}, stop={stop}, step={step}, axis={axis}."
        )
    count = lengths.pop() if lengths else 0
    starts, stops, steps, axes = ([None] * count if value is None else value for value in given)
    steps = [1 if value is None else value for value in steps]
    backwards = [value < 0 for value in steps]
    first = [-1 if back else 0 for back in backwards]
    last = [INT_MIN if back else INT_MAX for back in backwards]
    starts = [first[i] if value is None else value for i, value in enumerate(starts)]
    stops = [last[i] if value is None else value for i, value in enumerate(stops)]
    axes = [i if value is None else value for i, value in enumerate(axes)]
    return starts, stops, steps, axes


def _normalised(
    shape: tuple[int, ...], bounds: Tuple[List[int], List[int], List[int], List[int]]
) -> dict[str, tuple[int, ...]]:
    """Attributes of the full rank, as ``builtins.slice.indices`` gives them."""
    ranges = [(0, size, 1) for size in shape]
    for start, stop, step, axis in zip(*bounds, strict=True):
        if step == 0:
            raise popart_exception("slice step 0")
        axis = checked_axis(axis + len(shape) if axis < 0 else axis, len(shape), "slice axis")
        ranges[axis] = builtins.slice(start, stop, step).indices(shape[axis])
    columns = zip(*ranges, strict=True) if ranges else ((), (), ())
    return dict(zip(("starts", "stops", "steps"), columns, strict=True))


def _slice(
    kind: str,
    t: Tensor,
    start: Bound,
    stop: Bound,
    step: Bound,
    axis: Optional[Union[int, List[int]]],
) -> Tensor:
    check_in_graph(get_current_context().graph, t=t)
    if start is None and stop is None and step is None:
        return t
    attrs = _normalised(t.shape, process_args(start, stop, step, axis))
    return _create_op(kind, [t], attrs, ["slice_out"])[0]


@op_debug_context
def slice(
    t: Tensor,
    start: Optional[Union[int, List[Optional[int]]]] = None,
    stop: Optional[Union[int, List[Optional[int]]]] = None,
    step: Optional[Union[int, List[Optional[int]]]] = None,
    axis: Optional[Union[int, List[int]]] = None,
) -> Tensor:
    """A range of ``t`` along each given axis; bounds are clipped as Python's slices are.

    Args:
        t: any shape.
        start: first index per axis; None for the beginning (the end, if the step is -1).
        stop: index after the last; None for the end.
        step: 1 or -1; other strides need ``subsample`` and fail when a session runs.
        axis: axes of the entries, default 0, 1, …; negative ones count from the end.

    Returns:
        The range; ``t`` itself if start, stop and step are all None.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or the lists differ in length.
        popart_exception: an axis is out of range, or a step is 0.
    """
    return _slice("Slice", t, start, stop, step, axis)


@op_debug_context
def slice_(
    t: Tensor,
    start: Optional[Union[int, List[Optional[int]]]] = None,
    stop: Optional[Union[int, List[Optional[int]]]] = None,
    step: Optional[Union[int, List[Optional[int]]]] = None,
    axis: Optional[Union[int, List[int]]] = None,
) -> Tensor:
    """As :func:`slice`, but the result is an alias of ``t``."""
    return _slice("SliceInplace", t, start, stop, step, axis)


define(OpDef("SliceGrad", to_shape, moves_data=True))


@gradient("Slice")
def _gradients(site: GradSite) -> Grads:
    return [lambda: gradient_op("SliceGrad", site.grad(), **site.attrs, shape=site.in_spec().shape)]
