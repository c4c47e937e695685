"""Gradient graphs: vector-Jacobian products of a graph, as another graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from popart._internal import ir as _ir
from popxl.graph import Graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception

if TYPE_CHECKING:
    from popxl.ops.call import CallSiteInfo
    from popxl_torch.ir.records import Value


class ExpectedConnectionType(Enum):
    """Whether a gradient graph expects a forward value or its gradient."""

    Fwd = "Fwd"
    FwdGrad = "FwdGrad"

    @classmethod
    def _from_pb(cls, type_: Any) -> ExpectedConnectionType:
        return cls[getattr(type_, "name", type_)]


class ExpectedConnection:
    """What one input or output of a gradient graph stands for."""

    _fwd_graph: Graph
    _pb_ec: _ir.ExpectedConnection

    def __init__(self) -> None:
        raise TypeError("Cannot create an ExpectedConnection; autodiff makes them.")

    @classmethod
    def _from_pb(cls, fwd_graph: Any, pb_ec: Any) -> ExpectedConnection:
        self = cls.__new__(cls)
        self._fwd_graph = Graph._from_pb(fwd_graph)
        self._pb_ec = pb_ec
        return self

    def __repr__(self) -> str:
        return f"({self.connection_type}, {self.fwd_tensor})"

    @property
    def fwd_tensor(self) -> Tensor:
        """The tensor of the forward graph."""
        return self._fwd_graph.get_tensor(self._pb_ec.fwdId)

    @property
    def connection_type(self) -> ExpectedConnectionType:
        """Value or gradient."""
        return ExpectedConnectionType._from_pb(self._pb_ec.type)


class GradGraphInfo:
    """A gradient graph and how it connects to its forward graph."""

    _ir: Any
    _fwd_graph: Graph
    _pb_bwd_info: _ir.BwdGraphInfo

    def __init__(self) -> None:
        raise TypeError("Cannot create a GradGraphInfo; autodiff makes them.")

    @classmethod
    def _from_pb(cls, ir: Any, fwd_graph: Any, _pb_bwd_info: Any) -> GradGraphInfo:
        """From handles of Ir and forward graph and a BwdGraphInfo."""
        self = cls.__new__(cls)
        self._ir = ir
        self._fwd_graph = Graph._from_pb(fwd_graph)
        self._pb_bwd_info = _pb_bwd_info
        return self

    @classmethod
    def _make(
        cls,
        graph: Graph,
        forward_graph: Graph,
        inputs: Iterable[tuple[Value, ExpectedConnectionType]],
        outputs: Iterable[tuple[Value, ExpectedConnectionType]],
    ) -> GradGraphInfo:
        ins, outs = (
            [
                _ir.ExpectedConnection(value.id, _ir.ExpectedConnectionType[kind.name])
                for value, kind in connections
            ]
            for connections in (inputs, outputs)
        )
        info = _ir.BwdGraphInfo(_ir.GraphId(graph.id), ins, outs)
        return cls._from_pb(forward_graph.ir._pb_ir, forward_graph._pb_graph, info)

    def __repr__(self) -> str:
        return (
            f"GradGraphInfo[\n  graph={self.graph}\n  forward_graph={self.forward_graph}\n"
            f"  expected_inputs={self.expected_inputs}\n"
            f"  expected_outputs={self.expected_outputs}\n]"
        )

    @property
    def graph(self) -> Graph:
        """The gradient graph."""
        return Graph._from_pb(self._ir.getGraph(self._pb_bwd_info.bwdGraphId))

    @property
    def forward_graph(self) -> Graph:
        """The graph that was differentiated."""
        return self._fwd_graph

    @property
    def expected_inputs(self) -> tuple[ExpectedConnection, ...]:
        """One per input of the gradient graph."""
        return self._connections(self._pb_bwd_info.expectedInputs)

    @property
    def expected_outputs(self) -> tuple[ExpectedConnection, ...]:
        """One per output of the gradient graph."""
        return self._connections(self._pb_bwd_info.expectedOutputs)

    def _connections(self, found: Sequence[Any]) -> tuple[ExpectedConnection, ...]:
        forward = self._fwd_graph._pb_graph
        return tuple(ExpectedConnection._from_pb(forward, connection) for connection in found)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Forward tensors of the expected inputs."""
        return tuple(connection.fwd_tensor for connection in self.expected_inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Forward tensors of the expected outputs."""
        return tuple(connection.fwd_tensor for connection in self.expected_outputs)

    def inputs_dict(self, fwd_call_info: CallSiteInfo) -> dict[Tensor, Tensor]:
        """Inputs of the gradient graph that are forward values to the forward call's tensors.

        Args:
            fwd_call_info: a call of :attr:`forward_graph`.

        Raises:
            TypeError: a call of another graph.
        """
        self._check_call(fwd_call_info, self.forward_graph)
        pairs = zip(self.graph.inputs, self.expected_inputs, strict=False)
        return {
            graph_input: fwd_call_info.graph_to_parent(connection.fwd_tensor)
            for graph_input, connection in pairs
            if connection.connection_type is ExpectedConnectionType.Fwd
        }

    def fwd_graph_ins_to_grad_parent_outs(
        self, grad_call_info: CallSiteInfo
    ) -> dict[Tensor, Tensor]:
        """Inputs of the forward graph to the caller's gradients of them.

        Args:
            grad_call_info: a call of :attr:`graph`.

        Raises:
            TypeError: a call of another graph.
        """
        self._check_call(grad_call_info, self.graph)
        return {
            tensor: grad_call_info.parent_output(grad_call_info.graph_to_parent_output_index(index))
            for index, tensor in enumerate(self.outputs[: len(grad_call_info.outputs)])
            if tensor in self.forward_graph.inputs
        }

    def fwd_parent_ins_to_grad_parent_outs(
        self, fwd_call_info: CallSiteInfo, grad_call_info: CallSiteInfo
    ) -> dict[Tensor, Tensor]:
        """The caller's inputs of the forward graph to the caller's gradients of them.

        (quirk) Of a tensor that feeds two inputs only one gradient is kept.

        Args:
            fwd_call_info: a call of :attr:`forward_graph`.
            grad_call_info: a call of :attr:`graph`.

        Raises:
            TypeError: a call of another graph.
        """
        self._check_call(fwd_call_info, self.forward_graph)
        found = self.fwd_graph_ins_to_grad_parent_outs(grad_call_info)
        return {fwd_call_info.graph_to_parent(tensor): grad for tensor, grad in found.items()}

    @staticmethod
    def _check_call(info: CallSiteInfo, graph: Graph) -> None:
        if info.called_graph != graph:
            raise TypeError(
                f"The call site must be one of graph {graph.id}, not of {info.called_graph.id}."
            )


def autodiff(
    graph: Graph,
    grads_provided: Iterable[Tensor] | None = None,
    grads_required: Iterable[Tensor] | None = None,
    called_graphs_grad_info: Mapping[Graph, GradGraphInfo] | None = None,
    return_all_grad_graphs: bool = False,
) -> GradGraphInfo | dict[Graph, GradGraphInfo]:
    """Builds a graph of vector-Jacobian products of ``graph``; nothing is called.

    Inputs of the new graph: a gradient for each tensor of ``grads_provided``, then the forward
    values that it needs, ordered by id. Such values that are neither inputs nor outputs become
    further outputs of ``graph`` and of all calls of it. Outputs: one for each tensor of
    ``grads_required``, with its shape and dtype. Called graphs are differentiated as well.

    Args:
        graph: a sub-graph.
        grads_provided: tensors of ``graph`` whose gradients will be given; default its outputs.
        grads_required: tensors of ``graph`` to differentiate by; default its inputs.
        called_graphs_grad_info: gradients to use for called graphs.
        return_all_grad_graphs: return all gradient graphs that were made, by forward graph.

    Raises:
        popart_exception: a required gradient does not exist, an op on the way has none or writes
            its input, or a called graph must not be differentiated.
    """
    from popxl.transforms._subgraphs import Subgraphs

    provided = graph.outputs if grads_provided is None else tuple(grads_provided)
    required = graph.inputs if grads_required is None else tuple(grads_required)
    if not graph.id:
        raise popart_exception("autodiff: the main graph cannot be differentiated; use a sub-graph")
    if not required:
        raise popart_exception(f"autodiff of graph {graph.id}: grads_required is empty")
    for tensor in (*provided, *required):
        if tensor._value.graph is not graph._record:
            raise popart_exception(f"autodiff: {tensor} is not in graph {graph.id}")
    session = Subgraphs(called_graphs_grad_info or {})
    info = session.differentiate(
        graph, [t._value for t in provided], [t._value for t in required], strict=True
    )
    assert info is not None
    return {**session.made, graph: info} if return_all_grad_graphs else info
