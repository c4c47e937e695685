"""Input from the host."""

from __future__ import annotations

from popxl.context import op_debug_context
from popxl.ops.init import init_attrs
from popxl.ops.utils import _create_op
from popxl.streams import HostToDeviceStream
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("HostLoad", lambda ins, attrs: [attrs["stream"].spec], effect=True))


@op_debug_context
def host_load(h2d_stream: HostToDeviceStream, name: str | None = None) -> Tensor:
    """The next element of a stream: a tensor of the stream's shape and dtype.

    Args:
        h2d_stream: made by ``popxl.h2d_stream``.
        name: base of the result's name, ``<name>_hostload``; default the stream's.

    Raises:
        RuntimeError: no graph is active.
    """
    base = name or h2d_stream.tensor_id
    spec = h2d_stream._record.spec
    (target,) = _create_op("Init", [], init_attrs(spec, zero=False), [f"{base}_init"])
    return _create_op("HostLoad", [target], {"stream": h2d_stream._record}, [f"{base}_hostload"])[0]
