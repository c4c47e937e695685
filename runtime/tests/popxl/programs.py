"""What programs of these tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
from popxl import ops


def run(make_session: Any, ir: popxl.Ir, *tensors: popxl.Tensor) -> list[np.ndarray]:
    """Values of tensors of the main graph, which is current, after one run."""
    streams = [popxl.d2h_stream(t.shape, t.dtype) for t in tensors]
    for stream, tensor in zip(streams, tensors, strict=True):
        ops.host_store(stream, tensor)
    with make_session(ir) as session:
        outputs = session.run()
    return [outputs[stream] for stream in streams]
