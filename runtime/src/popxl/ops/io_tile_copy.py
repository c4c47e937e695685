"""Copies between compute and IO tiles."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("IoTileCopy", same, moves_data=True))


@op_debug_context
def io_tile_copy(t: Tensor) -> Tensor:
    """A copy of ``t`` on the IO tiles, or on the compute tiles if ``t`` is on the IO tiles.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph.
    """
    check_in_graph(get_current_context().graph, t=t)
    result = _create_op("IoTileCopy", [t], names=[f"{t.name}_iotilecopy"])[0]
    result._value.tile_set = "compute" if t._value.tile_set == "io" else "io"
    return result
