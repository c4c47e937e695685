"""Copies between virtual IPUs."""

from __future__ import annotations

from typing import Optional

from popxl.context import get_current_context, op_debug_context
from popxl.errors import UndefinedValue
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("IpuCopy", same, moves_data=True))


@op_debug_context
def ipu_copy(t: Tensor, destination: int, source: Optional[int] = None) -> Tensor:
    """A copy of ``t`` on another virtual IPU of the replica.

    Args:
        t: any shape.
        destination: virtual IPU of the result.
        source: virtual IPU of ``t``, by default that of the op that made it.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or its IPU is not known.
    """
    check_in_graph(get_current_context().graph, t=t)
    if source is None:
        try:
            source = t.ipu
        except UndefinedValue as error:
            raise ValueError(f"Could not infer the ipu of {t}. Please specify `source`.") from error
    attrs = {"source": source, "destination": destination}
    result = _create_op("IpuCopy", [t], attrs, [f"{t.name}_c{destination}"])[0]
    result._value.ipu = destination
    return result
