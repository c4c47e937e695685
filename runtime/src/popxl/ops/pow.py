"""Powers."""

from __future__ import annotations

import functools
from typing import Union

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op
from popxl.tensor import Tensor, TensorLike

define_elementwise("Pow")


@op_debug_context
def pow(t: Tensor, e: Union[float, int, TensorLike]) -> Tensor:
    """``t`` to the power of ``e``, element by element, with NumPy's broadcasting.

    Args:
        t: any shape.
        e: exponents of the same dtype. Numbers and arrays become constants of their own dtype:
            Python ints int32, Python floats float32.

    Raises:
        AttributeError: ``t`` is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Pow", "pow_out", t=t, e=t._ensure_tensor(e))


define_elementwise("PowArg0Grad")
define_elementwise("PowArg1Grad")


@gradient("Pow")
def _gradients(site: GradSite) -> Grads:
    operands = site.grad, site.input, functools.partial(site.input, 1)
    return [
        lambda: gradient_op("PowArg0Grad", *(operand() for operand in operands)),
        lambda: gradient_op("PowArg1Grad", *(operand() for operand in operands)),
    ]
