"""Repeat a whole graph. Signature only."""

from __future__ import annotations

import popxl


def repeat_graph(graph: popxl.Graph, repeat_count: int) -> popxl.Graph:
    """Move the ops of `graph` into a loop. Counts above 1 are not implemented yet."""
    if repeat_count <= 1:
        return graph
    raise NotImplementedError("popxl_addons.transforms.repeat_graph is not implemented yet")
