"""Conversion between data types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.dtypes import dtype, int32
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    return [Spec(specs[0].shape, attrs["dtype"], specs[0].meta_shape)]


define(OpDef("Cast", _infer, flops=lambda ins, outs, attrs: outs[0].nelms))


@op_debug_context
def cast(t: Tensor, data_type: dtype) -> Tensor:
    """``t`` in another dtype; always a new op. Floats become integers by truncation.

    Args:
        t: any shape.
        data_type: the result's dtype.

    Raises:
        TypeError: ``t`` is not a Tensor, or ``data_type`` is a float8 type.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    if data_type.name.startswith("float8"):
        raise TypeError(f"Use pow2scale_cast_to_fp8 to cast {t} to {data_type}.")
    name = f"{t.name}_{data_type.name}"
    return _create_op("Cast", [t], {"dtype": data_type.name}, [name])[0]


def _infer_scaled(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, _ = specs
    kinds = ("float16", "float32", "float8_143", "float8_152")
    wanted = kinds[:2] if attrs["dtype"].startswith("float8") else kinds[2:]
    if t.dtype not in wanted:
        raise popart_exception(f"expected {' or '.join(wanted)}, not {t}")
    return [Spec(t.shape, attrs["dtype"], t.meta_shape)]


for _kind in ("Pow2ScaleThenCast", "CastThenPow2Scale"):
    define(OpDef(_kind, _infer_scaled, flops=lambda ins, outs, attrs: outs[0].nelms))


def _scaled_cast(kind: str, t: Tensor, log2_scale: Tensor, data_type: dtype) -> Tensor:
    if log2_scale.rank > 0:
        raise ValueError(f"log2_scale must be a scalar, not {log2_scale}.")
    if log2_scale.dtype is not int32:
        raise TypeError(f"log2_scale must be int32, not {log2_scale}.")
    check_in_graph(get_current_context().graph, t=t, log2_scale=log2_scale)
    check_tensor_ipu_and_tile_set(t=t, log2_scale=log2_scale)
    name = f"{t.name}_{data_type.name}"
    return _create_op(kind, [t, log2_scale], {"dtype": data_type.name}, [name])[0]


@op_debug_context
def pow2scale_cast_to_fp8(t: Tensor, log2_scale: Tensor, data_type: dtype) -> Tensor:
    """``t * 2**log2_scale`` as float8, rounded to nearest, ties to even; NaN beyond its range.

    Args:
        t: float16 or float32, any shape.
        log2_scale: int32 scalar in [-32, 32).
        data_type: a float8 type.

    Raises:
        TypeError: ``data_type`` is no float8 type, or ``log2_scale`` is not int32.
        ValueError: ``log2_scale`` is no scalar, or a tensor is not in the current graph.
        popart_exception: ``t`` has another dtype.
    """
    if not data_type.name.startswith("float8"):
        raise TypeError(f"pow2scale_cast_to_fp8 casts to float8 types, not to {data_type}.")
    return _scaled_cast("Pow2ScaleThenCast", t, log2_scale, data_type)


@op_debug_context
def pow2scale_cast_from_fp8(t: Tensor, log2_scale: Tensor, data_type: dtype) -> Tensor:
    """The float8 tensor ``t`` in ``data_type``, times ``2**log2_scale``.

    Args:
        t: float8, any shape.
        log2_scale: int32 scalar in [-32, 32).
        data_type: float16 or float32.

    Raises:
        TypeError: another ``data_type``, or ``log2_scale`` is not int32.
        ValueError: ``log2_scale`` is no scalar, or a tensor is not in the current graph.
        popart_exception: ``t`` has another dtype.
    """
    if data_type.name not in ("float16", "float32"):
        raise TypeError(f"pow2scale_cast_from_fp8 casts to float16 or float32, not {data_type}.")
    return _scaled_cast("CastThenPow2Scale", t, log2_scale, data_type)


@gradient("Cast")
def _gradients(site: GradSite) -> Grads:
    source = dtype.as_dtype(site.in_spec().dtype)
    return [(lambda: cast(site.grad(), source)) if source.is_floating_point else None]
