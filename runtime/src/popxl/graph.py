"""A graph of ops, as programs see it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from popart import popart_exception
from popart._internal import ir as _ir
from popxl.context import get_current_context
from popxl.tensor import Constant, Tensor, Variable

if TYPE_CHECKING:
    from popxl.ir import Ir
    from popxl_torch.ir import records


class Graph:
    """The main graph or a sub-graph of an Ir. Made by ``Ir``, not by its constructor."""

    _record: records.Graph
    _ir: Ir
    _by_ref_inputs: set[Tensor]
    _hooks: dict[int, Callable[[Any], Any]]
    _handles: Iterator[int]

    def __init__(self) -> None:
        raise TypeError("Cannot create Graph instances; use ir.create_graph.")

    @classmethod
    def _make(cls, record: records.Graph, ir: Ir) -> Graph:
        self = cls.__new__(cls)
        self._record = record
        self._ir = ir
        self._by_ref_inputs = set()
        self._hooks = {}
        self._handles = itertools.count()
        return self

    @classmethod
    def _from_pb(cls, pb_graph: Any) -> Graph:
        record = pb_graph._record
        return record.program.frontend._graph(record)

    @property
    def _pb_graph(self) -> Any:
        return _ir.Graph(self._record)

    @property
    def name(self) -> str:
        """Same as :attr:`id`."""
        return self._record.id

    @property
    def id(self) -> str:
        """Scope string; empty for the main graph."""
        return self._record.id

    @property
    def ir(self) -> Ir:
        """The owner."""
        return self._ir

    @property
    def main_graph(self) -> Graph:
        """The owner's main graph."""
        return self.ir.main_graph

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs in index order."""
        return tuple(Tensor._from_value(value) for value in self._record.inputs)

    @property
    def inputs_by_name(self) -> dict[str, Tensor]:
        """Inputs by :attr:`Tensor.name`."""
        return {tensor.name: tensor for tensor in self.inputs}

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs in index order."""
        return tuple(Tensor._from_value(value) for value in self._record.outputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the graph."""
        return tuple(Tensor._from_value(value) for value in self._record.values.values())

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables of the graph."""
        return tuple(tensor for tensor in self.tensors if isinstance(tensor, Variable))

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constants of the graph."""
        return tuple(tensor for tensor in self.tensors if isinstance(tensor, Constant))

    @property
    def called_graphs(self) -> tuple[Graph, ...]:
        """Graphs that ops of this graph call directly."""
        found = {graph.id: graph for op in self._record.ops for graph in op.graphs}
        return tuple(self.ir._graph(graph) for graph in found.values())

    def get_tensor(self, tensor_id: str) -> Tensor:
        """The tensor with this full id; popart_exception if there is none."""
        try:
            return Tensor._from_value(self._record.values[tensor_id])
        except KeyError:
            raise popart_exception(
                f"No tensor with id {tensor_id!r} in graph {self.id!r}"
            ) from None

    def __contains__(self, value: Tensor) -> bool:
        if not isinstance(value, Tensor):
            raise TypeError(f"Value must be of type popxl.Tensor, not {type(value)}")
        return value.id in self._record.values

    def __eq__(self, value: object) -> bool:
        if not isinstance(value, Graph):
            raise TypeError(f"Value must be of type popxl.Graph, not {type(value)}")
        return self._record is value._record

    def __hash__(self) -> int:
        return hash((self._record.program.id, self.id))

    def __repr__(self) -> str:
        return f"Graph[id={self.id} name={self.name}]"

    def __enter__(self) -> Graph:
        get_current_context().push_graph(self)
        return self

    def __exit__(self, *exc: object) -> None:
        get_current_context().pop_graph()

    def _create_tensor_id(self, name: str | None = None) -> str:
        """A unique id in this graph: graph scope, active name scopes, name."""
        parts = [self.id] if self.id else []
        parts += [*get_current_context().name_scopes, name or "t"]
        tensor_id = "/".join(parts)
        if tensor_id in self._record.values:
            tensor_id = f"{tensor_id}__t{next(self._record.program.tensor_ids)}"
        return tensor_id

    def register_op_created_hook(self, fn: Callable[[Any], Any]) -> int:
        """Call ``fn(op)`` for every op created in this graph; returns a handle."""
        handle = next(self._handles)
        self._hooks[handle] = fn
        return handle

    def remove_op_created_hook(self, handle: int) -> None:
        """Undo :meth:`register_op_created_hook`; ValueError for an unknown handle."""
        if handle not in self._hooks:
            raise ValueError(f"There is no hook with handle {handle}.")
        del self._hooks[handle]
