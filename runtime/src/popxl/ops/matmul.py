"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, sum_to
from popxl.ops.reshape import reshape
from popxl.ops.transpose import transpose
from popxl.ops.utils import (
    _create_op,
    cast_if_needed,
    check_in_graph,
    check_tensor_ipu_and_tile_set,
    convert_optional_dtype,
)
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, broadcast_shapes, define
from popxl_torch.ir.records import Spec

_PARTIALS = {"": "float32", "float": "float32", "half": "float16"}


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    lhs, rhs = specs[0].shape, specs[1].shape
    if not lhs or not rhs:
        raise popart_exception(f"matmul takes no scalars: {lhs} @ {rhs}")
    left = lhs if len(lhs) > 1 else (1, *lhs)
    right = rhs if len(rhs) > 1 else (*rhs, 1)
    if left[-1] != right[-2]:
        raise popart_exception(f"matmul: inner sizes differ: {specs[0]} @ {specs[1]}")
    shape = [*broadcast_shapes(left[:-2], right[:-2])]
    shape += [left[-2]] * (len(lhs) > 1) + [right[-1]] * (len(rhs) > 1)
    return [Spec(tuple(shape), attrs.get("dtype") or specs[0].dtype)]


def _flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return 2 * outs[0].nelms * ins[0].shape[-1]


define(OpDef("MatMul", _infer, flops=_flops))


@op_debug_context
def matmul(
    lhs: Tensor,
    rhs: Tensor,
    available_memory_proportion: Optional[float] = None,
    output_type: Optional[dtypes.dtype] = None,
    partials_type: Optional[dtypes.dtype] = None,
) -> Tensor:
    """Matrix product with NumPy's shapes: ``(..., m, k) @ (..., k, n) -> (..., m, n)``.

    A 1-D operand gets an axis for the product, which the result lacks; the axes before the last two
    broadcast.

    Args:
        lhs: left operand.
        rhs: right operand of the same dtype.
        available_memory_proportion: a hint for IPUs; ignored.
        output_type: dtype of the result; default that of ``lhs``.
        partials_type: float16 or float32: a hint; products are accumulated in float32. Default
            from the session option ``partialsTypeMatMuls``.

    Raises:
        ValueError: another ``partials_type`` or option value.
        popart_exception: a scalar, or inner sizes that differ.
    """
    context = get_current_context()
    check_in_graph(context.graph, lhs=lhs, rhs=rhs)
    check_tensor_ipu_and_tile_set(lhs=lhs, rhs=rhs)
    attrs = {
        "dtype": convert_optional_dtype(output_type),
        "partials": _partials(context, partials_type),
    }
    return _create_op("MatMul", [lhs, rhs], attrs, ["matmul_out"])[0]


def _partials(context: Any, partials_type: dtypes.dtype | None) -> str:
    if partials_type is not None:
        if partials_type not in (dtypes.float16, dtypes.float32):
            raise ValueError(f"partials_type must be float16 or float32, not {partials_type}.")
        return partials_type.name
    option = str(context.ir._pb_ir.getSessionOptions().partialsTypeMatMuls)
    if option.lower() not in _PARTIALS:
        raise ValueError(
            f"The session option partialsTypeMatMuls must be 'half' or 'float', not {option!r}."
        )
    return _PARTIALS[option.lower()]


def pow2scaled_attrs(lhs: Tensor, rhs: Tensor, log2_scale: Tensor) -> dict[str, Any]:
    """Attributes of a float8 product, after the checks that all such ops make.

    Raises:
        TypeError: an operand is not float8, or the scale is not int32.
        ValueError: the scale is no scalar.
    """
    for t in (lhs, rhs):
        if not t.dtype.name.startswith("float8"):
            raise TypeError(f"Both operands must be float8, not {t}.")
    if log2_scale.rank > 0:
        raise ValueError(f"log2_scale must be a scalar, not {log2_scale}.")
    if log2_scale.dtype is not dtypes.int32:
        raise TypeError(f"log2_scale must be int32, not {log2_scale}.")
    options = get_current_context().ir._pb_ir.getSessionOptions()
    return {
        "dtype": dtypes.float16.name,
        "check_scale": bool(options.throwIfLog2ScaleTensorNotInRange),
    }


@op_debug_context
def matmul_pow2scaled(
    lhs: Tensor,
    rhs: Tensor,
    log2_scale: Tensor,
    available_memory_proportion: Optional[float] = None,
) -> Tensor:
    """float8 product times ``2 ** log2_scale``, as float16. Shapes as in :func:`matmul`.

    Args:
        lhs: float8.
        rhs: float8; the formats may differ.
        log2_scale: int32 scalar. With the session option ``throwIfLog2ScaleTensorNotInRange`` one
            outside [-32, 32) raises ``poplar_application_runtime_error`` when the program runs.
        available_memory_proportion: a hint for IPUs; ignored.

    Raises:
        TypeError: an operand is not float8, or the scale is not int32.
        ValueError: the scale is no scalar.
        popart_exception: a scalar operand, or inner sizes that differ.
    """
    attrs = pow2scaled_attrs(lhs, rhs, log2_scale)
    check_in_graph(get_current_context().graph, lhs=lhs, rhs=rhs, log2_scale=log2_scale)
    check_tensor_ipu_and_tile_set(lhs=lhs, rhs=rhs, log2_scale=log2_scale)
    return _create_op("MatMul", [lhs, rhs, log2_scale], attrs, ["matmul_pow2scaled_out"])[0]


def _transposed(t: Tensor) -> Tensor:
    """The last two axes exchanged."""
    return transpose(t, (*range(t.rank - 2), t.rank - 1, t.rank - 2))


@gradient("MatMul")
def _gradients(site: GradSite) -> Grads:
    if len(site.op.inputs) > 2:
        raise site.refusal("float8 products have no gradient")
    left, right = site.in_spec(0), site.in_spec(1)
    # Vectors are matrices of one row or column while gradients are computed.
    rows = left.shape if len(left.shape) > 1 else (1, *left.shape)
    columns = right.shape if len(right.shape) > 1 else (*right.shape, 1)

    def grad() -> Tensor:
        batch = broadcast_shapes(rows[:-2], columns[:-2])
        t = reshape(site.grad(), (*batch, rows[-2], columns[-1]))
        return cast_if_needed(t, dtypes.dtype.as_dtype(left.dtype))

    def of_left() -> Tensor:
        t = grad() @ _transposed(reshape(site.input(1), columns))
        return reshape(sum_to(t, rows), left.shape)

    def of_right() -> Tensor:
        x, g = reshape(site.input(0), rows), grad()
        if len(columns) == 2 and len(rows) > 2:  # one product instead of a sum of products
            x, g = reshape(x, (-1, rows[-1])), reshape(g, (-1, columns[-1]))
        return reshape(sum_to(_transposed(x) @ g, columns), right.shape)

    return [of_left, of_right]
