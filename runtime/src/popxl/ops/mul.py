"""Multiplication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import broadcast_shapes, elementwise, join_meta_shapes
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """As element-wise ops, but a float32 scalar may scale a float16 tensor."""
    dtypes = {spec.dtype for spec in specs}
    scalar_is_wide = any(spec.dtype == "float32" and spec.nelms == 1 for spec in specs)
    if dtypes == {"float16", "float32"} and scalar_is_wide:
        shape = broadcast_shapes(*(spec.shape for spec in specs))
        return [Spec(shape, "float16", join_meta_shapes(*specs))]
    return elementwise(specs, attrs)


define_elementwise("Mul", _infer)


@op_debug_context
def mul(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Product ``lhs * rhs``, element by element, with NumPy's broadcasting.

    Args:
        lhs: any shape.
        rhs: same dtype, broadcastable with ``lhs``. The one exception to equal dtypes: a float32
            tensor of one element times a float16 tensor gives float16.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Mul", "mul_out", lhs=lhs, rhs=rhs)


@gradient("Mul")
def _gradients(site: GradSite) -> Grads:
    return [lambda: site.grad() * site.input(1), lambda: site.grad() * site.input(0)]
