"""One-hot vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, _, values = specs
    axis, classes = attrs["axis"], attrs["num_classes"]
    if classes is None:
        raise popart_exception("onehot: num_classes must be a scalar constant")
    if not 0 <= axis <= len(t.shape):
        raise popart_exception(f"onehot: axis {axis} is out of range for {t}")
    if values.shape != (2,) or "int" not in t.dtype:
        raise popart_exception(f"onehot: expected integers and [off, on], got {t} and {values}")
    return [Spec((*t.shape[:axis], classes, *t.shape[axis:]), values.dtype)]


define(OpDef("OneHot", _infer, moves_data=True))


@op_debug_context
def onehot(t: Tensor, num_classes: Tensor, values: Tensor, axis: int) -> Tensor:
    """``values[1]`` at the class that ``t`` names, ``values[0]`` elsewhere.

    Args:
        t: integers of any shape.
        num_classes: scalar constant.
        values: [off, on]; gives the dtype.
        axis: where the axis of classes goes: -1 is last, else non-negative.

    Raises:
        popart_exception: ``num_classes`` is no constant, or axis out of range.
    """
    check_in_graph(get_current_context().graph, t=t, num_classes=num_classes, values=values)
    check_tensor_ipu_and_tile_set(t=t, num_classes=num_classes, values=values)
    known = num_classes._value.kind == "constant" and num_classes.nelms == 1
    attrs = {
        "num_classes": int(num_classes._value.data.reshape(())) if known else None,
        "axis": t.rank if axis == -1 else axis,
    }
    return _create_op("OneHot", [t, num_classes, values], attrs, ["onehot_out"])[0]


define(OpDef("OnehotGrad", to_shape))


@gradient("OneHot")
def _gradients(site: GradSite) -> Grads:
    axis = site.attrs["axis"]
    return [
        None,
        None,
        lambda: gradient_op("OnehotGrad", site.grad(), site.input(0), axis=axis, shape=(2,)),
    ]
