"""Copies into variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    if specs[0].shape != specs[1].shape:
        raise popart_exception(f"copy_var_update: {specs[1]} does not fit {specs[0]}")
    return [specs[0]]


define(OpDef("CopyVarUpdate", _infer, pure="CopyVarUpdate", writes=0))


@op_debug_context
def copy_var_update_(t: Tensor, X: Tensor) -> Tensor:
    """``t = X`` in place.

    Args:
        t: updated.
        X: shape of ``t``.

    Raises:
        popart_exception: shapes differ.
    """
    check_in_graph(get_current_context().graph, t=t, X=X)
    check_tensor_ipu_and_tile_set(t=t, X=X)
    return _create_op("CopyVarUpdate", [t, X], None, [f"updated__{t.name}"])[0]
