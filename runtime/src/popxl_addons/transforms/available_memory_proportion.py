"""How much memory matmuls and convolutions may use: kept with the ops, no effect here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import popxl
from popxl_addons.graph_common import graph_of

__all__ = [
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
]


def _checked(proportions: Iterable[float]) -> list[float]:
    found = [float(proportion) for proportion in proportions]
    if not found:
        raise IndexError("At least one available memory proportion is needed")
    return found


def _set(op: Any, proportions: Sequence[float]) -> None:
    ipu = op.getVirtualGraphId()
    proportion = proportions[ipu if ipu < len(proportions) else 0]
    if op.opType() == "MatMul":
        op.setAvailableMemoryProportion(proportion)
    elif op.opType() in ("Conv", "ConvTranspose"):
        options = op.getConvOptions()
        options.availableMemoryProportions = [proportion]
        op.setConvOptions(options)


def set_available_memory_proportion_by_ipu(ir: popxl.Ir, proportions: Iterable[float]) -> None:
    """Recorded only: results and memory here do not depend on it.

    Args:
        ir: the program.
        proportions: a fraction for each IPU; the first one also for IPUs without their own.

    Raises:
        IndexError: there is none.
    """
    proportions = _checked(proportions)
    for graph in ir._pb_ir.getAllGraphs():
        for op in graph.getOps():
            _set(op, proportions)


def set_graph_available_memory_proportion_by_ipu(
    graph: popxl.Graph, proportions: Iterable[float]
) -> None:
    """`set_available_memory_proportion_by_ipu` for a graph and what it calls.
    Recorded only."""
    proportions = _checked(proportions)
    seen: set[popxl.Graph] = set()
    todo = [graph_of(graph)]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(current.called_graphs)
            for op in current._pb_graph.getOps():
                _set(op, proportions)
