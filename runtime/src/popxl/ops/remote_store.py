"""Stores to remote memory."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.remote_load import _offset_tensor
from popxl.ops.utils import _create_op, check_in_graph
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("RemoteStore", lambda ins, attrs: [], effect=True))


@op_debug_context
def remote_store(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> None:
    """Store ``t`` as entry ``offset`` of a buffer.

    Args:
        remote_buffer: entries of one shape and dtype.
        offset: entry; an int, or one integer that is known at run time.
        t: of the entries' shape and dtype.

    Raises:
        TypeError: the offset is neither an int nor a Tensor (NumPy's integers are not).
        ValueError: the offset is not one integer of the current graph, or shape or
            dtype of ``t`` is not that of the buffer's entries.
    """
    check_in_graph(get_current_context().graph, t=t)
    remote_buffer.validate_tensor_matches_buffer(t)
    index = _offset_tensor(offset)
    _create_op("RemoteStore", [t, index], {"buffer": remote_buffer._record})
