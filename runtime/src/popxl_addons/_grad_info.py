"""Making popxl's gradient information by hand."""

from __future__ import annotations

from collections.abc import Iterable

import popxl
from popart._internal import ir as _ir
from popxl.transforms import GradGraphInfo


def grad_info(
    fwd_graph: popxl.Graph,
    grad_graph: popxl.Graph,
    inputs: Iterable[tuple[popxl.Tensor, str]],
    outputs: Iterable[popxl.Tensor],
) -> GradGraphInfo:
    """Gradient information.

    Args:
        fwd_graph: the forward graph.
        grad_graph: the gradient graph.
        inputs: of `grad_graph`, in order: a forward tensor, and "Fwd" or "FwdGrad".
        outputs: of `grad_graph`, in order: forward tensors whose gradients they are.
    """
    record = _ir.BwdGraphInfo(
        _ir.GraphId(grad_graph.id),
        [
            _ir.ExpectedConnection(tensor.id, _ir.ExpectedConnectionType[kind])
            for tensor, kind in inputs
        ],
        [
            _ir.ExpectedConnection(tensor.id, _ir.ExpectedConnectionType.FwdGrad)
            for tensor in outputs
        ],
    )
    return GradGraphInfo._from_pb(fwd_graph.ir._pb_ir, fwd_graph._pb_graph, record)
