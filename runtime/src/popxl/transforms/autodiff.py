"""Gradient graphs. The names are here; the transform is not built yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from popxl.errors import _not_implemented

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ops.call import CallSiteInfo
    from popxl.tensor import Tensor


class ExpectedConnectionType(Enum):
    """Whether a gradient graph expects a forward value or its gradient."""

    Fwd = "Fwd"
    FwdGrad = "FwdGrad"

    @classmethod
    def _from_pb(cls, type_: Any) -> ExpectedConnectionType:
        _not_implemented("popxl.transforms.ExpectedConnectionType._from_pb")


class ExpectedConnection:
    """What one input or output of a gradient graph stands for."""

    def __init__(self) -> None:
        raise TypeError("Cannot create an ExpectedConnection; autodiff makes them.")

    @classmethod
    def _from_pb(cls, fwd_graph: Any, pb_ec: Any) -> ExpectedConnection:
        _not_implemented("popxl.transforms.ExpectedConnection._from_pb")

    def __repr__(self) -> str:
        return f"({self.connection_type}, {self.fwd_tensor})"

    @property
    def fwd_tensor(self) -> Tensor:
        """The tensor of the forward graph."""
        _not_implemented("popxl.transforms.ExpectedConnection.fwd_tensor")

    @property
    def connection_type(self) -> ExpectedConnectionType:
        """Value or gradient."""
        _not_implemented("popxl.transforms.ExpectedConnection.connection_type")


class GradGraphInfo:
    """A gradient graph and how it connects to its forward graph."""

    def __init__(self) -> None:
        raise TypeError("Cannot create a GradGraphInfo; autodiff makes them.")

    @classmethod
    def _from_pb(cls, ir: Any, fwd_graph: Any, _pb_bwd_info: Any) -> GradGraphInfo:
        _not_implemented("popxl.transforms.GradGraphInfo._from_pb")

    def __repr__(self) -> str:
        return (
            f"GradGraphInfo[\n  graph={self.graph}\n  forward_graph={self.forward_graph}\n"
            f"  expected_inputs={self.expected_inputs}\n"
            f"  expected_outputs={self.expected_outputs}\n]"
        )

    @property
    def graph(self) -> Graph:
        """The gradient graph."""
        _not_implemented("popxl.transforms.GradGraphInfo.graph")

    @property
    def forward_graph(self) -> Graph:
        """The graph that was differentiated."""
        _not_implemented("popxl.transforms.GradGraphInfo.forward_graph")

    @property
    def expected_inputs(self) -> tuple[ExpectedConnection, ...]:
        """One per input of the gradient graph."""
        _not_implemented("popxl.transforms.GradGraphInfo.expected_inputs")

    @property
    def expected_outputs(self) -> tuple[ExpectedConnection, ...]:
        """One per output of the gradient graph."""
        _not_implemented("popxl.transforms.GradGraphInfo.expected_outputs")

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Forward tensors of the expected inputs."""
        return tuple(connection.fwd_tensor for connection in self.expected_inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Forward tensors of the expected outputs."""
        return tuple(connection.fwd_tensor for connection in self.expected_outputs)

    def inputs_dict(self, fwd_call_info: CallSiteInfo) -> dict[Tensor, Tensor]:
        """Gradient-graph inputs to the forward call's tensors. Not built yet."""
        _not_implemented("popxl.transforms.GradGraphInfo.inputs_dict")

    def fwd_graph_ins_to_grad_parent_outs(
        self, grad_call_info: CallSiteInfo
    ) -> dict[Tensor, Tensor]:
        """Forward-graph inputs to the caller's gradients. Not built yet."""
        _not_implemented("popxl.transforms.GradGraphInfo.fwd_graph_ins_to_grad_parent_outs")

    def fwd_parent_ins_to_grad_parent_outs(
        self, fwd_call_info: CallSiteInfo, grad_call_info: CallSiteInfo
    ) -> dict[Tensor, Tensor]:
        """The caller's forward inputs to its gradients. Not built yet."""
        _not_implemented("popxl.transforms.GradGraphInfo.fwd_parent_ins_to_grad_parent_outs")


def autodiff(
    graph: Graph,
    grads_provided: Iterable[Tensor] | None = None,
    grads_required: Iterable[Tensor] | None = None,
    called_graphs_grad_info: Mapping[Graph, GradGraphInfo] | None = None,
    return_all_grad_graphs: bool = False,
) -> GradGraphInfo | dict[Graph, GradGraphInfo]:
    """A graph of vector-Jacobian products of ``graph``. Not built yet.

    Raises:
        NotImplementedError: always.
    """
    _not_implemented("popxl.transforms.autodiff")
