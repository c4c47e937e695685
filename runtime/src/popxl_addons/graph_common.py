"""What counts as a graph, and as gradient information, where addons take either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union

import popxl

if TYPE_CHECKING:
    from popxl_addons.graph import BoundGraph, GraphWithNamedArgs

GraphLike = Union[popxl.Graph, "GraphWithNamedArgs", "BoundGraph"]
# popxl's GradGraphInfo, or a GraphWithNamedArgs that has one.
GradGraphInfoLike = Any
CalledGraphsGradInfo = Mapping[popxl.Graph, Any]
CalledGraphsGradInfoLike = Mapping[GraphLike, GradGraphInfoLike]
