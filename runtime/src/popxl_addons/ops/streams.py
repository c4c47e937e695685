"""Load and store one tensor through streams of its own."""

from __future__ import annotations

import popxl
from popxl import DeviceToHostStream, HostToDeviceStream, ops
from popxl.tensor import HostTensor
from popxl.utils import to_numpy

__all__ = ["host_load", "host_store"]


def host_load(
    t: HostTensor, dtype: popxl.dtype, name: str
) -> tuple[HostTensor, HostToDeviceStream, popxl.Tensor]:
    """A stream `<name>_stream` of the data's shape and a load from it.

    Returns:
        The data in `dtype`, the stream, the loaded tensor.
    """
    data = to_numpy(t, dtype, copy=False)
    stream = popxl.h2d_stream(data.shape, dtype, name=f"{name}_stream")
    return data, stream, ops.host_load(stream, name)


def host_store(t: popxl.Tensor) -> DeviceToHostStream:
    """A stream `<name of t>_stream` to which `t` is stored."""
    stream = popxl.d2h_stream(t.shape, t.dtype, name=f"{t.name}_stream")
    ops.host_store(stream, t)
    return stream
