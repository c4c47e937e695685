"""Every k-th element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Iterable, Union

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    if any(stride < 1 for stride in attrs["strides"]):
        raise popart_exception(f"subsample strides must be positive, not {attrs['strides']}")
    sizes = zip(spec.shape, attrs["strides"], strict=True)
    return [Spec(tuple(-(-size // stride) for size, stride in sizes), spec.dtype)]


define(OpDef("Subsample", _infer, moves_data=True))


@op_debug_context
def subsample(t: Tensor, strides: Union[int, Iterable[int]]) -> Tensor:
    """Every k-th element along each axis, from the first on.

    Args:
        t: any shape.
        strides: k of the first axis, or of the first few axes; the others keep all elements.
            (quirk) A list is padded with ones in place.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or there are more strides than axes.
        popart_exception: a stride is not positive.
    """
    check_in_graph(get_current_context().graph, t=t)
    if isinstance(strides, int):
        strides = [strides]
    elif not isinstance(strides, list):
        strides = list(strides)
    if len(strides) > t.rank:
        raise ValueError(f"{len(strides)} strides for {t}, which has {t.rank} axes.")
    strides.extend([1] * (t.rank - len(strides)))
    return _create_op("Subsample", [t], {"strides": tuple(strides)}, ["subsample_out"])[0]


define(OpDef("SubsampleGrad", to_shape, moves_data=True))


@gradient("Subsample")
def _gradients(site: GradSite) -> Grads:
    strides, shape = site.attrs["strides"], site.in_spec().shape
    return [lambda: gradient_op("SubsampleGrad", site.grad(), strides=strides, shape=shape)]
