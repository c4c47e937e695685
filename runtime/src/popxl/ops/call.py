"""Calls of sub-graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popart._internal import ir as _ir
from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.ops.utils import _create_op
from popxl.tensor import Tensor, TensorLike
from popxl.utils import table_to_string
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception, popart_internal_exception
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("Call", lambda ins, attrs: [], effect=True))


def _flatten(inputs: Iterable[Any]) -> list[Any]:
    """Expand iterables one level. (quirk) NumPy arrays are unpacked along their first axis."""
    flat: list[Any] = []
    for item in inputs:
        if isinstance(item, Iterable) and not isinstance(item, str):
            flat.extend(item)
        else:
            flat.append(item)
    return flat


def _bind_inputs(
    graph: Graph,
    inputs: Iterable[Any],
    inputs_dict: Mapping[Tensor, Any] | None,
    check_inputs: bool,
    called: str = "called",
) -> list[Tensor | None]:
    """Tensors of the current graph for each input of ``graph``; values become constants.

    Raises:
        ValueError: too many, missing or doubly given inputs, or tensors of other graphs.
        TypeError: a value that is no tensor and cannot become one.
    """
    current = get_current_context().graph
    graph_inputs = graph.inputs
    flat = _flatten(inputs)
    if len(flat) > len(graph_inputs):
        raise ValueError(
            f"Too many inputs have been provided: {len(flat)} for the {len(graph_inputs)} inputs of"
            f" {called} graph {graph.id}."
        )
    given: dict[int, Any] = dict(enumerate(flat))
    for key, value in (inputs_dict or {}).items():
        index = graph_inputs.index(key) if key in graph_inputs else -1
        if index < 0:
            raise ValueError(f"Graph input tensor {key} is not in the {called} graph {graph.id}.")
        if index in given:
            raise ValueError(f"Graph input tensor is specified twice: {key}")
        given[index] = value
    bound: list[Tensor | None] = []
    for index, graph_input in enumerate(graph_inputs):
        value = given.get(index)
        bound.append(None if index not in given else _parent(value, graph_input, current))
    if check_inputs and any(t is None for t in bound):
        rows = [("Graph input", "Parent tensor")]
        rows += [
            (str(g), "MISSING" if p is None else str(p))
            for g, p in zip(graph_inputs, bound, strict=True)
        ]
        raise ValueError(
            f"Not enough inputs have been provided for graph {graph.id}:\n{table_to_string(rows)}"
        )
    return bound


def _parent(value: Any, graph_input: Tensor, current: Graph) -> Tensor:
    if isinstance(value, Tensor):
        if value._value.graph is not current._record:
            raise ValueError(f"Tensor {value} is not in parent graph {current.id!r}.")
        return value
    try:
        return Tensor._ensure_tensor(value, graph_input.dtype)
    except ValueError as error:
        raise TypeError(
            f"Value {value!r} for input {graph_input} could not be coerced into a tensor."
        ) from error


def _check_specs(graph: Graph, bound: list[Tensor | None]) -> None:
    for graph_input, parent in zip(graph.inputs, bound, strict=True):
        if parent is not None and parent._value.spec != graph_input._value.spec:
            raise popart_exception(
                f"Call of graph {graph.id}: input {graph_input} does not accept {parent}"
                f" (meta shapes {graph_input.meta_shape} and {parent.meta_shape})"
            )


def _flag_by_ref(info: CallSiteInfo, graph: Graph, parents: Sequence[Tensor | None]) -> None:
    for graph_input, parent in zip(graph.inputs, parents, strict=True):
        if graph_input._value.by_ref and parent is not None:
            info.set_parent_input_modified(parent)


class CallSiteInfo:
    """A call and how its tensors map to those of the called graph."""

    def __init__(self, subgraph_op: Any) -> None:
        """``subgraph_op``: the low-level handle of a call or loop."""
        self._op = subgraph_op
        self._op_record: records.Op = subgraph_op._record

    @classmethod
    def _of(cls, op: records.Op) -> CallSiteInfo:
        return cls(_ir.Op(op))

    @property
    def _offset(self) -> int:
        """Loops have two leading inputs: iteration counter and condition."""
        return 2 if self._op_record.kind == "Loop" else 0

    @property
    def called_graph(self) -> Graph:
        """The called graph; for a repeat its wrapper."""
        record = self._op_record.graphs[0]
        return record.program.frontend._graph(record)

    def graph_to_parent_input_index(self, idx: int) -> int:
        """Op input index of graph input ``idx``."""
        return idx

    def parent_to_graph_input_index(self, idx: int) -> int:
        """Graph input index of op input ``idx``."""
        return idx

    def graph_to_parent_output_index(self, idx: int) -> int:
        """Op output index of graph output ``idx``; IndexError for a loop's condition."""
        if self._offset and idx == 0:
            raise IndexError("The condition of a loop is no output of the op.")
        return idx - (1 if self._offset else 0)

    def parent_to_graph_output_index(self, idx: int) -> int:
        """Graph output index of op output ``idx``."""
        return idx + (1 if self._offset else 0)

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """The caller's tensor for an input or output of the called graph (inputs first)."""
        graph = self.called_graph
        if graph_tensor in graph.inputs:
            return self.parent_input(
                self.graph_to_parent_input_index(graph.inputs.index(graph_tensor))
            )
        if graph_tensor in graph.outputs:
            return self.parent_output(
                self.graph_to_parent_output_index(graph.outputs.index(graph_tensor))
            )
        raise ValueError(f"{graph_tensor} is not an input or output of the called graph {graph.id}")

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """The (first) graph input that ``parent_tensor`` feeds."""
        for index, value in enumerate(self._op_record.inputs):
            if value is parent_tensor._value:
                return self.called_graph.inputs[self.parent_to_graph_input_index(index)]
        raise ValueError(f"{parent_tensor} is not an input of the op that calls the graph.")

    def parent_input(self, idx: int) -> Tensor:
        """Op input ``idx``; IndexError when out of range or unconnected."""
        return Tensor._from_pb_tensor(self._op.inTensor(idx))

    def parent_output(self, idx: int) -> Tensor:
        """Op output ``idx``; IndexError when out of range."""
        return Tensor._from_pb_tensor(self._op.outTensor(idx))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The caller's connected input tensors."""
        return tuple(Tensor._from_value(v) for v in self._op_record.inputs if v is not None)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The caller's output tensors; live."""
        return tuple(Tensor._from_value(v) for v in self._op_record.outputs)

    def set_parent_input_modified(
        self, parent_tensor: Tensor, infer_modified_regions: bool = False
    ) -> None:
        """Let in-place changes of the input reach ``parent_tensor``.

        Args:
            parent_tensor: an input of the call.
            infer_modified_regions: report only what ops of the graph write, not all of the tensor.
                Recorded as the same thing: what nothing writes keeps its value.

        Raises:
            popart_internal_exception: the tensor is connected never or more than once.
        """
        found = [i for i, v in enumerate(self._op_record.inputs) if v is parent_tensor._value]
        if len(found) != 1:
            raise popart_internal_exception(
                f"{parent_tensor} is connected to the call at {len(found)} inputs; it must be 1"
            )
        self._op_record.attrs["modified"].add(found[0] - self._offset)


def call(
    graph: Graph,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
) -> tuple[Tensor, ...]:
    """Call ``graph`` with inputs by position and by graph-input tensor; returns its outputs.

    Inputs are passed by value, except those that the graph takes by reference.

    Args:
        graph: a sub-graph.
        inputs: tensors of the current graph or values for constants, by position; iterables are
            expanded one level, arrays too: wrap those in a list.
        inputs_dict: the same by input tensor of ``graph``.

    Raises:
        ValueError: too many, missing or doubly given inputs, or tensors of other graphs.
        TypeError: a value that cannot become a tensor.
        popart_exception: shape, dtype or meta shape differs from the graph input's.
        popart_internal_exception: a tensor taken by reference is also another input.
    """
    return call_with_info(graph, *inputs, inputs_dict=inputs_dict).outputs


def call_with_info(
    graph: Graph,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """As :func:`call`, but returns the call site.

    With ``check_inputs=False`` missing inputs are an IndexError instead of a ValueError.
    """
    bound = _bind_inputs(graph, inputs, inputs_dict, check_inputs)
    if any(t is None for t in bound):
        raise IndexError(f"Inputs of graph {graph.id} are not connected.")
    _check_specs(graph, bound)
    outputs = graph._record.outputs
    made = get_current_context().graph._record.ops
    _create_op(
        "Call",
        bound,
        {"modified": set()},
        names=[value.name for value in outputs],
        graphs=(graph._record,),
        specs=[value.spec for value in outputs],
    )
    info = CallSiteInfo._of(made[-1])
    _flag_by_ref(info, graph, bound)
    return info
