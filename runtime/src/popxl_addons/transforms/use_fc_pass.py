"""Whether matmuls keep transposed weights: kept with the ops, no effect here."""

from __future__ import annotations

import popxl

__all__ = ["disable_fc_pass", "enable_fc_pass"]


def disable_fc_pass(ir: popxl.Ir) -> None:
    """Recorded only: results do not depend on it."""
    _set(ir, False)


def enable_fc_pass(ir: popxl.Ir) -> None:
    """Recorded only: results do not depend on it."""
    _set(ir, True)


def _set(ir: popxl.Ir, value: bool) -> None:
    for graph in ir._pb_ir.getAllGraphs():
        for op in graph.getOps():
            if op.opType() == "MatMul":
                op.setUseFullyConnectedPass(value)
