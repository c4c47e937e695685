"""Dropout."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("Dropout", same))


@op_debug_context
def dropout(t: Tensor, seed_tensor: Tensor, p: float) -> Tensor:
    """Zeros with probability ``p``; the other elements times ``1 / (1 - p)``. Never switched off.

    Args:
        t: any shape.
        seed_tensor: (2,) uint32. The same seed and shape give the same mask.
        p: probability.

    Raises:
        TypeError: an argument is not a Tensor.
        ValueError: an argument is not in the current graph, or they lie on different IPUs.
    """
    check_in_graph(get_current_context().graph, t=t, seed_tensor=seed_tensor)
    check_tensor_ipu_and_tile_set(t=t, seed_tensor=seed_tensor)
    return _create_op("Dropout", [t, seed_tensor], {"ratio": float(p)}, ["dropout_out"])[0]


@gradient("Dropout")
def _gradients(site: GradSite) -> Grads:
    return [lambda: dropout(site.grad(), site.input(1), site.attrs["ratio"]), None]
