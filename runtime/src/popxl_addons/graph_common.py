"""What counts as a graph, and as gradient information, where addons take either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union

import popxl
from popxl.transforms import GradGraphInfo

if TYPE_CHECKING:
    from popxl_addons.graph import BoundGraph, GraphWithNamedArgs

GraphLike = Union[popxl.Graph, "GraphWithNamedArgs", "BoundGraph"]
# popxl's GradGraphInfo, or a GraphWithNamedArgs that has one.
GradGraphInfoLike = Any
CalledGraphsGradInfo = Mapping[popxl.Graph, GradGraphInfo]
CalledGraphsGradInfoLike = Mapping[GraphLike, GradGraphInfoLike]


def graph_of(graph: GraphLike) -> popxl.Graph:
    """popxl's graph."""
    return graph if isinstance(graph, popxl.Graph) else graph.graph


def grad_info_of(info: GradGraphInfoLike) -> GradGraphInfo:
    """popxl's gradient information; AttributeError for a named graph without it."""
    named = hasattr(type(info), "grad_graph_info")
    return info.grad_graph_info if named else info


def called_graphs_info(infos: CalledGraphsGradInfoLike | None) -> dict[popxl.Graph, GradGraphInfo]:
    """popxl's gradient information by popxl's graph."""
    return {graph_of(graph): grad_info_of(info) for graph, info in (infos or {}).items()}
