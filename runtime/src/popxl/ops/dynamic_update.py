"""Updates that start where a tensor says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.dynamic_slice import check_index, dynamic_slice
from popxl.ops.gradients import Grads, GradSite, gradient, zeros
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    check_index(specs[1], attrs)
    return [specs[0]]


define(OpDef("DynamicUpdate", _infer, moves_data=True))
define(OpDef("DynamicUpdateInplace", _infer, pure="DynamicUpdate", writes=0, moves_data=True))


def _update(
    kind: str,
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
    no_overlap: bool,
) -> Tensor:
    check_in_graph(get_current_context().graph, t=t, index=index, t_update=t_update)
    check_tensor_ipu_and_tile_set(t=t, index=index, t_update=t_update)
    attrs = {"axes": tuple(axes), "sizes": tuple(sizes), "no_overlap": bool(no_overlap)}
    name = "dynamic_update_out" if kind == "DynamicUpdate" else "dynamicupdateinplace_out"
    return _create_op(kind, [t, index, t_update], attrs, [name])[0]


@op_debug_context
def dynamic_update(
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
    no_overlap: bool,
) -> Tensor:
    """A copy of ``t`` whose window at ``index`` is replaced by ``t_update``.

    Args:
        t: any shape.
        index: uint32 or int32, one start per entry of ``axes``. Starts must be in range.
        t_update: shape of ``t`` with ``sizes`` at ``axes``.
        axes: non-negative.
        sizes: of the window along ``axes``.
        no_overlap: a promise about the windows, for gradients.

    Raises:
        popart_exception: an index of another size or dtype.
    """
    return _update("DynamicUpdate", t, index, t_update, axes, sizes, no_overlap)


@op_debug_context
def dynamic_update_(
    t: Tensor,
    index: Tensor,
    t_update: Tensor,
    axes: Iterable[int],
    sizes: Iterable[int],
    no_overlap: bool,
) -> Tensor:
    """:func:`dynamic_update` in place; returns an alias of ``t``."""
    return _update("DynamicUpdateInplace", t, index, t_update, axes, sizes, no_overlap)


@gradient("DynamicUpdate")
def _gradients(site: GradSite) -> Grads:
    attrs = site.attrs
    window = attrs["axes"], attrs["sizes"], attrs["no_overlap"]

    def kept() -> Tensor:
        return dynamic_update(site.grad(), site.input(1), zeros(site.in_spec(2)), *window)

    def replaced() -> Tensor:
        axes, sizes, no_overlap = window
        return dynamic_slice(site.grad(), site.input(1), list(axes), list(sizes), no_overlap)

    return [kept, None, replaced]
