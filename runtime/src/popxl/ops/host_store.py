"""Output to the host."""

from __future__ import annotations

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl.streams import DeviceToHostStream
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("HostStore", lambda ins, attrs: [], effect=True))


@op_debug_context
def host_store(d2h_stream: DeviceToHostStream, t: Tensor) -> None:
    """Write ``t`` as the next element of a stream.

    Args:
        d2h_stream: made by ``popxl.d2h_stream``.
        t: of the stream's shape and dtype.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or its shape or dtype is not the stream's.
    """
    check_in_graph(get_current_context().graph, t=t)
    if d2h_stream.dtype is not t.dtype:
        raise ValueError(
            f"The dtype {d2h_stream.dtype} of stream `{d2h_stream.tensor_id}` does not match dtype"
            f" of provided tensor {t}."
        )
    if tuple(d2h_stream.shape) != tuple(t.shape):
        raise ValueError(
            f"The shape {d2h_stream.shape} of stream `{d2h_stream.tensor_id}` does not match shape"
            f" of provided tensor {t}."
        )
    _create_op("HostStore", [t], {"stream": d2h_stream._record})
