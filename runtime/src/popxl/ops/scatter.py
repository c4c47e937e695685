"""Writing elements by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, zeros
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, indices, values = specs
    if not 0 <= attrs["axis"] < len(t.shape):
        raise popart_exception(f"scatter: axis {attrs['axis']} is out of range for {t}")
    if indices.shape != values.shape or len(indices.shape) != len(t.shape):
        raise popart_exception(
            f"scatter: indices and values need one shape of rank {len(t.shape)}, got {indices} and"
            f" {values}"
        )
    if "int" not in indices.dtype or values.dtype != t.dtype:
        raise popart_exception(
            f"scatter: expected integer indices and values of {t.dtype}, got {indices} and {values}"
        )
    return [t]


def _infer_elements(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    return [Spec(specs[1].shape, specs[0].dtype)]


define(OpDef("Scatter", _infer, moves_data=True))


@op_debug_context
def scatter(
    t: Tensor,
    indices: Tensor,
    values: Tensor,
    axis: int = 0,
    available_memory_proportion: Optional[float] = None,
) -> Tensor:
    """A copy of ``t`` with ``values`` written at ``indices`` along ``axis``.

    Args:
        t: any shape but ().
        indices: integers of ``t``'s rank.
        values: shape of ``indices``, dtype of ``t``.
        axis: the axis that ``indices`` count; other positions are the values' own.
        available_memory_proportion: a hint for IPUs; ignored.

    Raises:
        popart_exception: axis out of range, or other shapes and dtypes.
    """
    check_in_graph(get_current_context().graph, t=t, indices=indices, values=values)
    check_tensor_ipu_and_tile_set(t=t, indices=indices, values=values)
    attrs = {"axis": axis + t.rank if axis < 0 else axis}
    return _create_op("Scatter", [t, indices, values], attrs, ["scatter_out"])[0]


define(OpDef("GatherElements", _infer_elements, moves_data=True))


@gradient("Scatter")
def _gradients(site: GradSite) -> Grads:
    axis = site.attrs["axis"]

    def kept() -> Tensor:
        return scatter(site.grad(), site.input(1), zeros(site.in_spec(2)), axis)

    def written() -> Tensor:
        return gradient_op("GatherElements", site.grad(), site.input(1), axis=axis)

    return [kept, None, written]
