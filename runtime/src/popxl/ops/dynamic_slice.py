"""Slices that start where a tensor says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, List

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, zeros
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def check_index(index: Any, attrs: Mapping[str, Any]) -> None:
    """One integer per axis; popart_exception otherwise."""
    if index.dtype not in ("int32", "uint32") or index.nelms != len(attrs["axes"]):
        raise popart_exception(
            f"the index must be {len(attrs['axes'])} elements of int32 or uint32 for axes"
            f" {list(attrs['axes'])}, not {index}"
        )


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, index = specs
    check_index(index, attrs)
    shape = list(t.shape)
    for axis, size in zip(attrs["axes"], attrs["sizes"], strict=True):
        shape[axis] = size
    return [Spec(tuple(shape), t.dtype)]


define(OpDef("DynamicSlice", _infer, moves_data=True))


@op_debug_context
def dynamic_slice(
    t: Tensor, index: Tensor, axes: List[int], sizes: List[int], no_overlap: bool
) -> Tensor:
    """The window of ``t`` that starts at ``index``.

    Args:
        t: any shape.
        index: uint32 or int32, one start per entry of ``axes``. Starts must be in range.
        axes: non-negative.
        sizes: of the window along ``axes``; other axes are kept whole.
        no_overlap: a promise about the slices taken, for gradients.

    Raises:
        popart_exception: an index of another size or dtype.
    """
    check_in_graph(get_current_context().graph, t=t, index=index)
    check_tensor_ipu_and_tile_set(t=t, index=index)
    attrs = {"axes": tuple(axes), "sizes": tuple(sizes), "no_overlap": bool(no_overlap)}
    return _create_op("DynamicSlice", [t, index], attrs, ["dynamic_slice_out"])[0]


@gradient("DynamicSlice")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        from popxl.ops.dynamic_update import dynamic_update

        attrs = site.attrs
        whole = zeros(site.in_spec())
        window = attrs["axes"], attrs["sizes"], attrs["no_overlap"]
        return dynamic_update(whole, site.input(1), site.grad(), *window)

    return [grad, None]
