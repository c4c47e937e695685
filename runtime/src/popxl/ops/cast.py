"""Conversion between data types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.dtypes import dtype
from popxl.errors import _not_implemented
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
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


def pow2scale_cast_to_fp8(t: Tensor, log2_scale: Tensor, data_type: dtype) -> Tensor:
    """``t * 2**log2_scale`` as float8. Not implemented yet."""
    _not_implemented("popxl.ops.pow2scale_cast_to_fp8")


def pow2scale_cast_from_fp8(t: Tensor, log2_scale: Tensor, data_type: dtype) -> Tensor:
    """The float8 tensor ``t`` times ``2**log2_scale`` in ``data_type``. Not implemented yet."""
    _not_implemented("popxl.ops.pow2scale_cast_from_fp8")
