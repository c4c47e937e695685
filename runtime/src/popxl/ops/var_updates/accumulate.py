"""Accumulators: running sums, means and moving averages, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.ops.var_updates.utils import _factor
from popxl.tensor import Tensor, constant
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define, same
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, update = specs[0], specs[1]
    if t.shape != update.shape:
        raise popart_exception(f"accumulate: {update} cannot be added to {t}")
    if len(specs) > 2 and specs[2].nelms != 1:
        raise popart_exception(f"accumulate: the factor must be a scalar, not {specs[2]}")
    return [t]


def _infer_sparse(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, update, indices = specs[:3]
    axis = attrs["axis"]
    if not 0 <= axis < len(t.shape):
        raise popart_exception(f"sparse_accumulate: axis {axis} is out of range for {t}")
    wanted = (*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :])
    if len(indices.shape) != 1 or update.shape != wanted:
        raise popart_exception(
            f"sparse_accumulate: expected 1-D indices and updates {wanted}, got {indices} and"
            f" {update}"
        )
    return [t]


define(OpDef("Accumulate", _infer, pure="Accumulate", writes=0))
define(OpDef("AccumulatorScale", same, pure="AccumulatorScale", writes=0))
define(OpDef("PopartSparseAccumulate", _infer_sparse, pure="PopartSparseAccumulate", writes=0))


def _accumulate(rule: str, t: Tensor, update: Tensor, f: Any, name: str) -> Tensor:
    check_in_graph(get_current_context().graph, t=t, X=update)
    check_tensor_ipu_and_tile_set(t=t, X=update)
    number, factor = _factor(f)
    inputs = [t, update, *([] if factor is None else [factor])]
    attrs = {"rule": rule, "factor": number}
    return _create_op("Accumulate", inputs, attrs, [f"{name}__{t.name}"])[0]


@op_debug_context
def accumulate_(t: Tensor, X: Tensor, f: Optional[Union[float, Tensor]] = None) -> Tensor:
    """``t += X``, or ``t += f * X``.

    Args:
        t: updated in place.
        X: shape of ``t``; may be narrower, e.g. a float16 gradient.
        f: number (not 0) or scalar tensor.

    Raises:
        popart_exception: shapes differ; for ``f == 0`` when the session compiles.
    """
    rule = "add" if f is None else "scaled"
    return _accumulate(rule, t, X, 1.0 if f is None else f, "accumulate")


@op_debug_context
def accumulate_square_(t: Tensor, X: Tensor, f: Union[float, Tensor] = 1.0) -> Tensor:
    """``t += f * X ** 2``. See :func:`accumulate_`."""
    return _accumulate("square", t, X, f, "accumulate_square")


@op_debug_context
def accumulate_mean_(t: Tensor, X: Tensor, step: Union[float, Tensor]) -> Tensor:
    """``t = step / (step + 1) * t + X / (step + 1)``: the mean so far. See :func:`accumulate_`.

    Args:
        t: updated in place.
        X: shape of ``t``.
        step: number or scalar tensor, which counts from 0.
    """
    if not isinstance(step, Tensor):
        step = constant(step, dtypes.float32, "step")
    return _accumulate("mean", t, X, step, "accumulate_mean")


@op_debug_context
def accumulate_moving_average_(t: Tensor, X: Tensor, f: Union[float, Tensor]) -> Tensor:
    """``t = f * t + (1 - f) * X``. See :func:`accumulate_`."""
    return _accumulate("average", t, X, f, "accumulate_moving_avg")


@op_debug_context
def accumulate_moving_average_square_(
    t: Tensor,
    X: Tensor,
    f: Union[float, Tensor],
) -> Tensor:
    """``t = f * t + (1 - f) * X ** 2``. See :func:`accumulate_`."""
    return _accumulate("average_square", t, X, f, "accumulate_moving_avg_square")


@op_debug_context
def accumulator_scale_(t: Tensor, f: Union[float, Tensor]) -> Tensor:
    """``t *= f``; the number 0 writes zeros, whatever ``t`` holds.

    Args:
        t: updated in place.
        f: number or scalar tensor.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    number, factor = _factor(f)
    inputs = [t, *([] if factor is None else [factor])]
    name = f"accumulator_scale__{t.name}"
    return _create_op("AccumulatorScale", inputs, {"factor": number}, [name])[0]


@op_debug_context
def accumulator_zero_(t: Tensor) -> Tensor:
    """Writes zeros. Clears NaN and infinity as well. See :func:`accumulator_scale_`."""
    return accumulator_scale_(t, 0.0)


@op_debug_context
def sparse_accumulate_(
    t: Tensor,
    X: Tensor,
    indices: Tensor,
    axis: int = 0,
    f: Optional[Union[float, Tensor]] = None,
    W: Optional[Tensor] = None,
) -> Tensor:
    """Adds slices of ``X``, times ``f``, to ``t`` at ``indices``; repeated ones add up.

    Args:
        t: updated in place.
        X: shape of ``t`` with ``len(indices)`` at ``axis``.
        indices: 1-D integers.
        axis: axis of ``t``.
        f: number or scalar tensor; default 1.
        W: a hint about the layout of ``t``; ignored.

    Raises:
        popart_exception: axis out of range, or other shapes.
    """
    tensors = {"t": t, "X": X, "indices": indices, **({} if W is None else {"W": W})}
    check_in_graph(get_current_context().graph, **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    number, factor = _factor(1.0 if f is None else f)
    attrs = {"axis": axis + t.rank if axis < 0 else axis, "factor": number}
    inputs = [t, X, indices, *([] if factor is None else [factor])]
    name = f"sparse_accumulate__{t.name}"
    return _create_op("PopartSparseAccumulate", inputs, attrs, [name])[0]
