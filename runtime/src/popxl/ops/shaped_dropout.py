"""Dropout with a mask that broadcasts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, broadcast_shapes, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t = specs[0]
    if broadcast_shapes(t.shape, attrs["shape"]) != t.shape:
        raise popart_exception(f"shaped_dropout: mask {attrs['shape']} does not broadcast to {t}")
    return [t]


define(OpDef("ShapedDropout", _infer))


@op_debug_context
def shaped_dropout(t: Tensor, seed_tensor: Tensor, shape: Iterable[int], ratio: float) -> Tensor:
    """:func:`popxl.ops.dropout` with one draw per element of ``shape``.

    Args:
        t: any shape.
        seed_tensor: (2,) uint32.
        shape: of the mask; broadcasts to ``t``.
        ratio: probability of zeros.

    Raises:
        popart_exception: the mask does not broadcast.
    """
    check_in_graph(get_current_context().graph, t=t, seed_tensor=seed_tensor)
    check_tensor_ipu_and_tile_set(t=t, seed_tensor=seed_tensor)
    attrs = {"shape": tuple(shape), "ratio": float(ratio)}
    return _create_op("ShapedDropout", [t, seed_tensor], attrs, ["shapeddropout_out"])[0]


@gradient("ShapedDropout")
def _gradients(site: GradSite) -> Grads:
    shape, ratio = site.attrs["shape"], site.attrs["ratio"]
    return [lambda: shaped_dropout(site.grad(), site.input(1), shape, ratio), None]
