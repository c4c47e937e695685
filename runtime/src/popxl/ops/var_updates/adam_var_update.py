"""The step of Adam and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.ops.var_updates.utils import _factor
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    if specs[0].shape != specs[1].shape:
        raise popart_exception(f"adam_var_update: update {specs[1]} does not fit {specs[0]}")
    return [specs[0]]


define(OpDef("AdamVarUpdate", _infer, pure="AdamVarUpdate", writes=0))


@op_debug_context
def adam_var_update(
    t: Tensor,
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    learning_rate: Optional[Union[float, Tensor]] = None,
    max_weight_norm: Optional[Union[float, Tensor]] = None,
) -> Tensor:
    """``t -= learning_rate * ratio * x`` in place; returns an alias of ``t``.

    ``ratio`` is ``min(sqrt(r1), max_weight_norm) / sqrt(r2)``, and 1 if either is 0.

    Args:
        t: updated.
        x: the update, e.g. of ``adam_updater``; shape of ``t``.
        r1: float32 scalar: squared norm of the weight.
        r2: float32 scalar: squared norm of the update.
        learning_rate: number or scalar tensor; None is 0.
        max_weight_norm: number or scalar tensor. None is an error when the session compiles.

    Raises:
        popart_exception: shapes differ.
    """
    tensors = {"t": t, "x": x, "r1": r1, "r2": r2}
    check_in_graph(get_current_context().graph, **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    rate, rate_input = _factor(learning_rate)
    norm, norm_input = (None, None) if max_weight_norm is None else _factor(max_weight_norm)
    inputs = [*tensors.values(), rate_input, norm_input]
    attrs = {"learning_rate": rate, "max_weight_norm": norm}
    return _create_op("AdamVarUpdate", inputs, attrs, ["adam_var_update_out"])[0]
