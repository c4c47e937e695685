"""Gradients of ops that call graphs: calls of the gradient graphs, with the values of the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.ops.add import add_all
from popxl.ops.call import call
from popxl.ops.conditional import conditional
from popxl.ops.gradients import zeros
from popxl.tensor import Tensor, graph_input
from popxl.transforms._backward import Backward
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.records import Op, Spec, Value

if TYPE_CHECKING:
    from popxl.transforms.autodiff import ExpectedConnection, GradGraphInfo


class Subgraphs:
    """The gradient graphs of one run of autodiff.

    Args:
        given: gradients to use for called graphs instead of differentiating them.
    """

    def __init__(self, given: Mapping[Graph, GradGraphInfo]) -> None:
        self.given = dict(given)
        self.made: dict[Graph, GradGraphInfo] = {}
        self._by_need: dict[tuple, GradGraphInfo | None] = {}

    def rules(self) -> dict[str, Callable[..., dict[int, Tensor]]]:
        """Gradients of calling ops by kind."""
        return {"Call": self._call, "If": self._conditional}

    def differentiate(
        self, graph: Graph, provided: Sequence[Value], required: Sequence[Value], strict: bool
    ) -> GradGraphInfo | None:
        """The gradient graph of ``graph``; None if none of ``required`` has a gradient."""
        info = Backward(graph, provided, required, self.rules(), strict).build()
        if info is not None:
            self.made.setdefault(graph, info)
        return info

    def _called(
        self, graph: Graph, provided: Sequence[Value], required: Sequence[Value]
    ) -> GradGraphInfo | None:
        if graph in self.given:
            return self.given[graph]
        if not graph._record.recursive_autodiff:
            raise popart_exception(
                f"Graph {graph.id} has been marked as unsafe to autodiff: its caller can be"
                " differentiated with a gradient graph in called_graphs_grad_info only."
            )
        key = (graph.id, tuple(provided), tuple(required))
        if key not in self._by_need:
            self._by_need[key] = self.differentiate(graph, provided, required, strict=False)
        return self._by_need[key]

    def _branch(
        self, backward: Backward, op: Op, grads: Sequence[Tensor | None], number: int, offset: int
    ) -> _Branch:
        record = op.graphs[number]
        graph = record.program.frontend._graph(record)
        provided = [v for v, grad in zip(record.outputs, grads, strict=False) if grad is not None]
        required = [
            value
            for index, value in enumerate(record.inputs)
            if op.inputs[offset + index] in backward.wanted
        ]
        info = None
        if provided and required:
            info = self._called(graph, list(dict.fromkeys(provided)), required)
        return _Branch(backward, op, grads, graph, offset, info)

    def _call(
        self, backward: Backward, op: Op, grads: Sequence[Tensor | None]
    ) -> dict[int, Tensor]:
        branch = self._branch(backward, op, grads, 0, 0)
        if branch.info is None:
            return {}
        return branch.by_input(call(branch.info.graph, *branch.arguments()))

    def _conditional(
        self, backward: Backward, op: Op, grads: Sequence[Tensor | None]
    ) -> dict[int, Tensor]:
        """A conditional between the branches' gradients; each gives zeros for the other's."""
        offsets = (1, 1 + op.attrs["num_then"])
        branches = [self._branch(backward, op, grads, i, at) for i, at in enumerate(offsets)]
        arguments = [branch.arguments() for branch in branches]
        wanted = [index for branch in branches for index in branch.indices()]
        if not wanted:
            return {}
        assert op.inputs[0] is not None
        condition = backward.forward(op.inputs[0])
        specs = {index: value.spec for index, value in enumerate(op.inputs) if value is not None}
        then, other = (
            branch.with_zeros(args, {index: specs[index] for index in wanted})
            for branch, args in zip(branches, arguments, strict=True)
        )
        return dict(
            zip(
                wanted, conditional(condition, then, other, arguments[0], arguments[1]), strict=True
            )
        )


class _Branch:
    """One graph that an op calls, and its gradient."""

    def __init__(
        self,
        backward: Backward,
        op: Op,
        grads: Sequence[Tensor | None],
        graph: Graph,
        offset: int,
        info: GradGraphInfo | None,
    ) -> None:
        self.backward, self.op, self.grads = backward, op, grads
        self.graph, self.offset, self.info = graph, offset, info

    def arguments(self) -> list[Tensor]:
        """Tensors of the caller's gradient graph for the inputs of the branch's."""
        return [self._argument(connection) for connection in self._expected_inputs()]

    def _expected_inputs(self) -> Sequence[ExpectedConnection]:
        return () if self.info is None else self.info.expected_inputs

    def _argument(self, connection: ExpectedConnection) -> Tensor:
        value, record = connection.fwd_tensor._value, self.graph._record
        if connection.connection_type.name == "FwdGrad":
            parts = [
                grad
                for out, grad in zip(record.outputs, self.grads, strict=False)
                if out is value and grad is not None
            ]
            return add_all(parts) if parts else zeros(value.spec)
        if value in record.inputs:
            parent = self.op.inputs[self.offset + record.inputs.index(value)]
            assert parent is not None
            return self.backward.forward(parent)
        if value not in record.outputs:
            raise popart_exception(
                f"The gradient graph {self.info and self.info.graph.id} needs {value}, which is"
                f" neither an input nor an output of {record.id}."
            )
        return self.backward.forward(self.op.outputs[record.outputs.index(value)])

    def indices(self) -> list[int]:
        """The op's inputs that the branch gives gradients of, in order of its outputs."""
        return [] if self.info is None else [*self._output_of()]

    def _output_of(self) -> dict[int, int]:
        """Input of the op to output of the gradient graph."""
        assert self.info is not None
        inputs = self.graph._record.inputs
        found = {}
        for position, tensor in enumerate(self.info.outputs):
            if tensor._value in inputs:
                index = self.offset + inputs.index(tensor._value)
                if self.op.inputs[index] in self.backward.wanted:
                    found[index] = position
        return found

    def by_input(self, results: Sequence[Tensor]) -> dict[int, Tensor]:
        """Results of the gradient graph by input of the op."""
        return {index: results[position] for index, position in self._output_of().items()}

    def with_zeros(self, arguments: Sequence[Tensor], wanted: Mapping[int, Spec]) -> Graph:
        """A graph like the branch's gradient that gives zeros where the other one has results."""
        graph = get_current_context().ir.create_empty_graph(f"{self.graph.id}_bwd_branch")
        with graph:
            inputs = [
                graph_input(t.shape, t.dtype, t.name, meta_shape=t.meta_shape) for t in arguments
            ]
            found: dict[int, Tensor] = {}
            if self.info is not None:
                found = self.by_input(call(self.info.graph, *inputs))
            outputs = [
                found[index] if index in found else zeros(spec) for index, spec in wanted.items()
            ]
        graph._record.outputs.extend(t._value for t in outputs)
        return graph
