"""How much memory matmuls and convolutions may use: recorded on IPUs, no effect here."""

from __future__ import annotations

from collections.abc import Iterable

import popxl

__all__ = [
    "set_available_memory_proportion_by_ipu",
    "set_graph_available_memory_proportion_by_ipu",
]


def _check(proportions: Iterable[float]) -> None:
    proportions = list(proportions)
    if not proportions:
        raise IndexError("At least one available memory proportion is needed")
    for proportion in proportions:
        float(proportion)


def set_available_memory_proportion_by_ipu(ir: popxl.Ir, proportions: Iterable[float]) -> None:
    """Recorded only: results and memory here do not depend on it.

    Args:
        ir: the program.
        proportions: a fraction for each IPU; the first one also for IPUs without their own.

    Raises:
        IndexError: there is none.
    """
    _check(proportions)


def set_graph_available_memory_proportion_by_ipu(
    graph: popxl.Graph, proportions: Iterable[float]
) -> None:
    """`set_available_memory_proportion_by_ipu` for a graph and what it calls.
    Recorded only."""
    _check(proportions)
