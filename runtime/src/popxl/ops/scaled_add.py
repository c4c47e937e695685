"""Weighted sum of two tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    x, y, *factors = specs
    if x.shape != y.shape:
        raise popart_exception(f"scaled_add needs equal shapes, not {x} and {y}")
    for factor in factors:
        if factor is not None and factor.nelms != 1:
            raise popart_exception(f"a factor of scaled_add must be a scalar, not {factor}")
    return [x]


define(OpDef("ScaledAdd", _infer, flops=lambda ins, outs, attrs: 3 * outs[0].nelms))
define(OpDef("ScaledAddLhsInplace", _infer, pure="ScaledAdd", writes=0))


def _scaled_add(
    kind: str, name: str, X: Tensor, Y: Tensor, a: Union[float, Tensor], b: Union[float, Tensor]
) -> Tensor:
    factors = {key: f for key, f in (("a", a), ("b", b)) if isinstance(f, Tensor)}
    check_in_graph(get_current_context().graph, X=X, Y=Y, **factors)
    check_tensor_ipu_and_tile_set(X=X, Y=Y, **factors)
    numbers = {key: float(f) for key, f in (("a", a), ("b", b)) if not isinstance(f, Tensor)}
    inputs = [X, Y, factors.get("a"), factors.get("b")]
    while inputs[-1] is None:
        inputs.pop()
    return _create_op(kind, inputs, numbers, [name])[0]


@op_debug_context
def scaled_add(
    X: Tensor, Y: Tensor, a: Union[float, Tensor] = 1.0, b: Union[float, Tensor] = 1.0
) -> Tensor:
    """``a X + b Y``.

    Args:
        X: any shape.
        Y: the same shape; may have another float dtype.
        a: number or scalar tensor.
        b: number or scalar tensor.

    Raises:
        AttributeError: X is not a Tensor.
        ValueError: a tensor is not in the current graph.
        popart_exception: the shapes differ.
    """
    return _scaled_add("ScaledAdd", "scaled_add_out", X, Y, a, b)


@op_debug_context
def scaled_add_(
    X: Tensor, Y: Tensor, a: Union[float, Tensor] = 1.0, b: Union[float, Tensor] = 1.0
) -> Tensor:
    """As :func:`scaled_add`, but X becomes the result; returns an alias of X."""
    return _scaled_add("ScaledAddLhsInplace", f"scaled_add__{X.name}", X, Y, a, b)
