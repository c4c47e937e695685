"""Graphs whose inputs have names, and graphs with some inputs bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import popxl
from popxl import ops
from popxl_addons.named_tensors import NamedTensors, TensorMap

if TYPE_CHECKING:
    from popxl.ops.call import CallSiteInfo
    from popxl_addons.module import Module, _Aux

_AUTODIFF_METHODS = ("auto", "build_grad", "autodiff")


class BoundGraph:
    """A graph and the tensors of the calling graph that some of its inputs get.

    Args:
        args: input of `graph` to tensor of the calling graph.
    """

    def __init__(self, graph: popxl.Graph, args: TensorMap | None = None) -> None:
        self.graph = graph
        self.args = dict(args or {})

    def call(
        self,
        *targs: popxl.Tensor | list[popxl.Tensor] | int | float,
        args: TensorMap | None = None,
    ) -> tuple[popxl.Tensor, ...]:
        """Call the graph; positional tensors are inputs 0, 1, ... Returns all outputs."""
        return tuple(self.call_with_info(*targs, args=args).outputs)

    def call_with_info(
        self,
        *targs: popxl.Tensor | list[popxl.Tensor] | int | float,
        args: TensorMap | None = None,
    ) -> CallSiteInfo:
        """As `call`, but returns popxl's information on the call site."""
        return ops.call_with_info(self.graph, *targs, inputs_dict={**self.args, **(args or {})})

    def bind(self, args: TensorMap) -> BoundGraph:
        """A bound graph with more, or other, inputs bound."""
        return BoundGraph(self.graph, {**self.args, **args})

    def subgraph_io_map(
        self,
        *targs: popxl.Tensor,
        args: TensorMap | None = None,
        outs: Iterable[popxl.Tensor] | None = None,
    ) -> dict[popxl.Tensor, popxl.Tensor]:
        """Inputs and outputs of the graph to the tensors of a call.

        Args:
            targs: positional inputs of the call.
            args: other inputs of the call.
            outs: outputs of the call.
        """
        mapping = dict(zip(self.graph.inputs, targs, strict=False))
        mapping.update(self.args)
        mapping.update(args or {})
        mapping.update(zip(self.graph.outputs, outs or (), strict=False))
        return mapping


class GraphWithNamedArgs:
    """A graph, names for some of its inputs, and what is known about its gradient."""

    def __init__(
        self,
        graph: popxl.Graph,
        args: NamedTensors | None = None,
        grad_graph_info: Any = None,
        from_module: Module | None = None,
        aux: _Aux | None = None,
        called_graphs_grad_info: Mapping[Any, Any] | None = None,
    ) -> None:
        self.graph = graph
        self.args = args or NamedTensors()
        self.called_graphs_grad_info = dict(called_graphs_grad_info or {})
        self.autodiff_applied = False
        self._grad_graph_info = grad_graph_info
        self._from_module = from_module
        self._aux = aux

    @classmethod
    def from_grad_graph(
        cls, grad_graph_info: Any, args: NamedTensors | None = None
    ) -> GraphWithNamedArgs:
        """The graph that gradient information is about."""
        return cls(grad_graph_info.graph, args, grad_graph_info)

    def bind(self, args: NamedTensors | None = None) -> BoundGraph:
        """Pair this graph's named inputs with `args` by flat key. Keys of one side only are
        ignored; an input that stays unbound is noticed by the call."""
        return BoundGraph(self.graph, self.args.to_mapping(args or NamedTensors()))

    def call(
        self,
        *targs: popxl.Tensor | list[popxl.Tensor] | int | float,
        args: TensorMap | None = None,
    ) -> tuple[popxl.Tensor, ...]:
        """Call the graph without bound inputs."""
        return self.bind().call(*targs, args=args)

    def call_with_info(
        self,
        *targs: popxl.Tensor | list[popxl.Tensor] | int | float,
        args: TensorMap | None = None,
    ) -> CallSiteInfo:
        """As `call`, but returns popxl's information on the call site."""
        return self.bind().call_with_info(*targs, args=args)

    def autodiff(
        self,
        grads_provided: Iterable[popxl.Tensor] | None = None,
        grads_required: Iterable[popxl.Tensor] | None = None,
        called_graphs_grad_info: Mapping[Any, Any] | None = None,
        method: Literal["auto", "build_grad", "autodiff"] = "auto",
        force: bool = False,
    ) -> GraphWithNamedArgs:
        """The graph of the gradients. Adds outputs to this graph: differentiate, then call.

        Args:
            grads_provided: outputs with an upstream gradient (default all).
            grads_required: inputs to differentiate by (default all).
            called_graphs_grad_info: gradients of called graphs.
            method: how; "auto" takes the module's `build_grad` if there is one.
            force: allow a second application.

        Raises:
            ValueError: an unknown method.
            RuntimeError: applied twice, or there is no `build_grad`.
        """
        if method not in _AUTODIFF_METHODS:
            raise ValueError(f"autodiff: method is one of {_AUTODIFF_METHODS}, got {method!r}")
        if self.autodiff_applied and not force:
            raise RuntimeError(f"Autodiff has already been applied to {self.graph.name}")
        module = self._from_module
        if module is not None and not module.implements_grad_graph:
            module = None
        if method == "build_grad" and module is None:
            raise RuntimeError(
                "autodiff: method 'build_grad' needs a graph for which `from_module` is specified"
                " and overrides build_grad"
            )
        self.autodiff_applied = True
        if module is not None and method != "autodiff":
            return module.create_grad_graph(self, grads_provided, grads_required)
        from popxl_addons.transforms.autodiff import autodiff

        return autodiff(self, grads_provided, grads_required, called_graphs_grad_info)

    def copy(self) -> GraphWithNamedArgs:
        """The same graph and gradient information with a copy of the named inputs; the module
        it came from is forgotten."""
        return GraphWithNamedArgs(self.graph, self.args.copy(), self._grad_graph_info)

    @property
    def grad_graph_info(self) -> Any:
        """Gradient information of this graph.

        Raises:
            AttributeError: there is none.
        """
        if self._grad_graph_info is None:
            raise AttributeError(f"{self.graph.name} has no grad_graph_info: it is no grad graph")
        return self._grad_graph_info

    @grad_graph_info.setter
    def grad_graph_info(self, grad_graph_info: Any) -> None:
        self._grad_graph_info = grad_graph_info

    def print_schedule(self) -> str:
        """The graph in text: inputs with their names, ops in order, outputs."""
        names = {tensor: key for key, tensor in self.args.to_dict().items()}
        lines = [f"{self.graph.name}:", "  inputs:"]
        for tensor in self.graph.inputs:
            lines.append(f"    {tensor!r}" + (f" ({names[tensor]})" if tensor in names else ""))
        lines.append("  ops:")
        for op in self.graph._pb_graph.getOpSchedule():
            inputs = ", ".join(str(t.id) for t in op.getInputTensors())
            outputs = ", ".join(str(t.id) for t in op.getOutputTensors())
            lines.append(f"    {op.opType()} ({inputs}) -> ({outputs})")
        lines.append("  outputs:")
        lines += [f"    {tensor!r}" for tensor in self.graph.outputs]
        return "\n".join(lines)
