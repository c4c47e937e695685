"""Gradient sums as chains of accumulations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from popxl.errors import _not_implemented

if TYPE_CHECKING:
    from popxl.graph import Graph


def decompose_sum(graph: Graph) -> Graph:
    """Replaces n-ary gradient sums of ``graph`` by chains of accumulations. Not built yet.

    Raises:
        NotImplementedError: always.
    """
    _not_implemented("popxl.transforms.decompose_sum")
