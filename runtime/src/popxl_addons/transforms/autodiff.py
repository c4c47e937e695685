"""Gradients of graphs. Signatures only: differentiation comes with training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import popxl
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.variable_factory import NamedVariableFactories

__all__ = ["autodiff", "autodiff_with_accumulation"]


def autodiff(
    graph: GraphWithNamedArgs | popxl.Graph,
    grads_provided: Iterable[popxl.Tensor] | None = None,
    grads_required: Iterable[popxl.Tensor] | None = None,
    called_graphs_grad_info: Mapping[Any, Any] | None = None,
) -> GraphWithNamedArgs:
    """The graph of the gradients. Not implemented yet."""
    raise NotImplementedError("popxl_addons.autodiff is not implemented yet")


def autodiff_with_accumulation(
    graph: GraphWithNamedArgs,
    tensors_to_accumulate_grads: Iterable[popxl.Tensor],
    grads_provided: Iterable[popxl.Tensor] | None = None,
    grads_required: Iterable[popxl.Tensor] | None = None,
    called_graphs_grad_info: Mapping[Any, Any] | None = None,
    replica_groupings: NamedReplicaGrouping | None = None,
) -> tuple[NamedVariableFactories, GraphWithNamedArgs]:
    """The graph of the gradients with running means of some. Not implemented yet."""
    raise NotImplementedError("popxl_addons.autodiff_with_accumulation is not implemented yet")


def remap_grad_info(grad_info: Any, forward_graph: popxl.Graph, backward_graph: popxl.Graph) -> Any:
    """The same gradient information for other graphs. Not implemented yet."""
    raise NotImplementedError("popxl_addons.transforms.remap_grad_info is not implemented yet")
