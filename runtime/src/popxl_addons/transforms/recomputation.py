"""Gradients that compute activations again. Signatures only."""

from __future__ import annotations

from typing import Any

from popxl_addons.graph import GraphWithNamedArgs

__all__ = ["add_recompute_inputs", "recompute_graph"]


def add_recompute_inputs(grad_info: Any) -> Any:
    """Inputs of a recomputing gradient graph. Not implemented yet."""
    raise NotImplementedError("popxl_addons.add_recompute_inputs is not implemented yet")


def recompute_graph(grad_graph: GraphWithNamedArgs) -> GraphWithNamedArgs:
    """A gradient graph that calls the forward graph first. Not implemented yet."""
    raise NotImplementedError("popxl_addons.recompute_graph is not implemented yet")
