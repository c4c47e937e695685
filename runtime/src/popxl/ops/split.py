"""Cutting a tensor along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, List, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops._families import checked_axis
from popxl.ops.concat import concat
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, handle_negative_axis
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    axis = checked_axis(attrs["axis"], len(spec.shape), "split axis")
    if sum(attrs["sizes"]) != spec.shape[axis]:
        raise popart_exception(
            f"split sizes {list(attrs['sizes'])} do not sum to the size {spec.shape[axis]}"
            f" of axis {axis}"
        )
    before, after = spec.shape[:axis], spec.shape[axis + 1 :]
    return [Spec((*before, size, *after), spec.dtype) for size in attrs["sizes"]]


define(OpDef("Split", _infer, moves_data=True))


@op_debug_context
def split(t: Tensor, splits: Union[int, List[int]], axis: int = 0) -> List[Tensor]:
    """Consecutive parts of ``t`` along ``axis``.

    Args:
        t: any shape but a scalar.
        splits: number of equal parts, or the size of each part.
        axis: negative ones count from the end.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or equal parts do not divide the axis.
        popart_exception: the sizes do not sum to the axis, or there is no such axis.
    """
    check_in_graph(get_current_context().graph, t=t)
    axis = handle_negative_axis(t, axis)
    if isinstance(splits, int):
        checked_axis(axis, t.rank, "split axis")
        size, rest = divmod(t.shape[axis], splits)
        if rest:
            raise ValueError(
                f"Split {splits} does not equally divide the size {t.shape[axis]} of axis {axis}"
                f" of {t}."
            )
        splits = [size] * splits
    sizes = tuple(int(size) for size in splits)
    names = [f"{t.name}_split_{i}" for i in range(len(sizes))]
    return _create_op("Split", [t], {"axis": axis, "sizes": sizes}, names)


@gradient("Split")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        parts = [site.grad(index) for index in range(len(site.op.outputs))]
        return concat(parts, site.attrs["axis"])

    return [grad]
