"""Order."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops._families import binary, define_elementwise
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import comparison

define_elementwise("Greater", comparison)


@op_debug_context
def greater(input: Tensor, other: Tensor) -> Tensor:
    """True where ``input`` is above ``other``, element by element.

    Args:
        input: any shape.
        other: same dtype, broadcastable with ``input``.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph.
        popart_exception: dtypes differ or shapes do not broadcast.
    """
    return binary("Greater", "greater_out", input=input, other=other)


@gradient("Greater")
def _gradients(site: GradSite) -> Grads:
    raise site.refusal("Greater does not have a valid grad op")
