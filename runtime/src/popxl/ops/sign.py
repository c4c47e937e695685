"""Sign."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import define_elementwise, unary
from popxl.ops.gradients import Grads, GradSite, gradient, zeros
from popxl.tensor import Tensor

define_elementwise("Sign")


@op_debug_context
def sign(t: Tensor) -> Tensor:
    """-1, 0 or 1 by each element's sign; 0 for NaN.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    return unary("Sign", t, "sign_out")


@gradient("Sign")
def _gradients(site: GradSite) -> Grads:
    return [lambda: zeros(site.in_spec())]
