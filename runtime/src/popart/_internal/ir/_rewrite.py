"""Rewriting of graphs through handles: ops that are made, connected and erased one by one.

Ops run in the order in which their graph lists them. A constraint that the list contradicts
reorders it; what an op needs stays before it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from popart._internal.ir._records import Settings
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import opdef

_CONTROL_FLOW: dict[str, dict[str, Any]] = {"Call": {}, "Loop": {"count": 1}, "If": {"num_then": 0}}


def find_value(graph: records.Graph, tensor_id: str) -> records.Value:
    """The tensor with this id; popart_exception if there is none."""
    try:
        return graph.values[tensor_id]
    except KeyError:
        raise popart_exception(f"No tensor with id {tensor_id!r} in graph {graph.id!r}") from None


def find_ops(graph: records.Graph, op_id: int) -> list[records.Op]:
    """The op with this id, or those that are listed as one with it; popart_exception if none is."""
    found = [op for op in graph.ops if op_id in (op.opid, listed(op).opid)]
    if not found:
        raise popart_exception(f"No op with id {op_id} in graph {graph.id!r}")
    return found


def new_op(graph: records.Graph, kind: str, given: Iterable[Any]) -> records.Op:
    """An op without inputs and outputs at the end of ``graph``.

    ``given`` are a constructor's arguments: Settings and handles of sub-graphs count. Attributes
    of a kind have no place there: they keep the values that control flow starts with.
    """
    given = list(given)
    settings = next((item for item in given if isinstance(item, Settings)), Settings())
    graphs = tuple(
        g._record for g in given if isinstance(getattr(g, "_record", None), records.Graph)
    )
    attrs = dict(_CONTROL_FLOW.get(kind, {}))
    if kind in ("Call", "Loop"):
        attrs["modified"] = set()
    op = records.Op(
        next(graph.program.op_ids), kind, graph, [], [], attrs, graphs, **settings.fields()
    )
    graph.ops.append(op)
    return op


def connected_op(
    graph: records.Graph,
    kind: str,
    inputs: Mapping[int, str],
    outputs: Mapping[int, str],
    given: Iterable[Any],
) -> records.Op:
    """As :func:`new_op`, with tensors by index and id, and set up."""
    op = new_op(graph, kind, given)
    for index in sorted(inputs):
        connect_input(op, index, inputs[index])
    for index in sorted(outputs):
        create_output(op, index, outputs[index])
    set_up(op)
    return op


def clone(op: records.Op, graph: records.Graph) -> records.Op:
    """The op again, without inputs and outputs, at the end of ``graph``."""
    twin = copy.copy(op)
    twin.opid, twin.graph = next(graph.program.op_ids), graph
    twin.inputs, twin.outputs, twin.attrs = [], [], copy.copy(op.attrs)
    twin.hints = {name: hint for name, hint in op.hints.items() if name != "listed_as"}
    if "modified" in twin.attrs:
        twin.attrs["modified"] = set(twin.attrs["modified"])
    graph.ops.append(twin)
    return twin


def connect_input(op: records.Op, index: int, tensor_id: str) -> None:
    """Make a tensor of the op's graph its input ``index``."""
    value = find_value(op.graph, tensor_id)
    op.inputs.extend([None] * (index + 1 - len(op.inputs)))
    op.inputs[index] = value


def create_output(op: records.Op, index: int, tensor_id: str) -> None:
    """A new tensor as output ``index``; its spec is known after :func:`set_up`."""
    if index != len(op.outputs):
        raise popart_exception(f"Outputs of {op.where()} are made in order, not at {index}")
    if tensor_id in op.graph.values:
        raise popart_exception(f"There is a tensor with id {tensor_id!r} already")
    value = records.Value(tensor_id, records.Spec((), "float32"), op.graph, "op", op)
    value.ipu, value.tile_set = op.ipu, op.tile_set
    op.graph.values[tensor_id] = value
    op.outputs.append(value)


def disconnect_outputs(op: records.Op) -> None:
    """Leave the op's outputs without a producer; those that nothing uses are dropped."""
    used = {value for other in op.graph.ops for value in other.inputs} | {*op.graph.outputs}
    for value in op.outputs:
        value.producer = None
        if value not in used:
            del op.graph.values[value.id]
    op.outputs.clear()


def listed(op: records.Op) -> records.Op:
    """The op that listings show for ``op``: itself, or the one that it was merged into."""
    return op.hints.get("listed_as", op)


def list_as_one(ops: Sequence[records.Op], kind: str) -> None:
    """Show several ops of one graph as one; what is run stays."""
    first = ops[0]
    inputs = [value for op in ops for value in op.inputs]
    outputs = [value for op in ops for value in op.outputs]
    writes, at = set(), 0
    for op in ops:
        written = opdef(op.kind).writes
        writes |= set() if written is None else {at + written}
        at += len(op.inputs)
    together = records.Op(
        next(first.graph.program.op_ids), kind, first.graph, inputs, outputs, {"writes": writes},
        **Settings.of(first).fields(),
    )  # fmt: skip
    for op in ops:
        op.hints["listed_as"] = together


def erase(op: records.Op) -> None:
    """Take the op, its outputs and its ordering constraints out of the graph."""
    graph = op.graph
    graph.ops.remove(op)
    disconnect_outputs(op)
    graph.befores.pop(op, None)
    for earlier in graph.befores.values():
        earlier.discard(op)


def set_up(op: records.Op) -> None:
    """Specs of the outputs from the inputs.

    Raises:
        popart_exception: the kind's rule rejects the inputs or misses an attribute.
    """
    specs: Sequence[records.Spec]
    if op.kind in _CONTROL_FLOW:
        skipped = 1 if op.kind == "Loop" else 0
        specs = [value.spec for value in op.graphs[0].outputs[skipped:]]
    else:
        inputs = [None if value is None else value.spec for value in op.inputs]
        try:
            specs = opdef(op.kind).infer(inputs, op.attrs)
        except KeyError as error:
            raise popart_exception(f"{op.where()} lacks the attribute {error}") from None
    for value, spec in zip(op.outputs, specs, strict=False):
        value.spec = spec


def add_loop_input(
    loop: records.Op, index: int, tensor_id: str, inner_id: str, overwrite: bool
) -> None:
    """A tensor as input ``index`` of a loop and of its sub-graph, in place of what is there if
    ``overwrite``."""
    value, (body,) = find_value(loop.graph, tensor_id), loop.graphs
    inner = records.Value(inner_id, value.spec, body, "input")
    body.values[inner_id] = inner
    if overwrite and index < len(body.inputs):
        loop.inputs[index], body.inputs[index] = value, inner
        return
    loop.inputs.insert(index, value)
    body.inputs.insert(index, inner)
    modified = loop.attrs["modified"]
    loop.attrs["modified"] = {k + 1 if k + 2 >= index else k for k in modified}


class TopoCons:
    """Which ops of a graph the program wants before which, besides those whose results they use."""

    def __init__(self, graph: records.Graph) -> None:
        self._graph = graph

    def contains(self, before: Any, after: Any) -> bool:
        """Whether there is this constraint between two op handles."""
        return before._record in self._graph.befores.get(after._record, ())

    def getBefores(self, after: Any) -> list[Any]:
        """Ops that have to come before ``after``."""
        return [type(after).of(op) for op in self._graph.befores.get(after._record, ())]

    def getAfters(self, before: Any) -> list[Any]:
        """Ops that have to come after ``before``."""
        found = self._graph.befores.items()
        return [type(before).of(op) for op, earlier in found if before._record in earlier]

    def insert(self, before: Any, after: Any) -> None:
        """Add a constraint; popart_exception if it contradicts others or the flow of data."""
        first, second = before._record, after._record
        if second in _ancestors(self._graph, first):
            raise popart_exception(f"{first.where()} cannot come before {second.where()}")
        self._graph.befores.setdefault(second, set()).add(first)
        ops = self._graph.ops
        if ops.index(second) < ops.index(first):
            needed = _ancestors(self._graph, second)
            at = ops.index(second)
            moved = [op for op in ops[at:] if op in needed]
            ops[at:] = moved + [op for op in ops[at:] if op not in needed]

    def remove(self, before: Any, after: Any) -> None:
        """Drop a constraint."""
        self._graph.befores.get(after._record, set()).discard(before._record)

    def transferToSubgraph(
        self, caller: Any, replacements: Mapping[Any, Any], tied: bool = False
    ) -> None:
        """Order clones of ops as the ops are ordered, and their caller as they are with others.

        Args:
            caller: the op of this graph that calls the graphs of the clones.
            replacements: op to its clone.
            tied: no effect.
        """
        clones = {op._record: clone._record for op, clone in replacements.items()}
        befores = self._graph.befores
        of_caller = befores.setdefault(caller._record, set())
        for op in clones.keys() & befores.keys():
            clones[op].graph.befores[clones[op]] = self._clones_before(op, clones)
            of_caller |= befores[op] - clones.keys()
        for op, earlier in befores.items():
            if op not in clones and op is not caller._record and earlier & clones.keys():
                earlier.add(caller._record)

    def _clones_before(
        self, op: records.Op, clones: Mapping[records.Op, records.Op]
    ) -> set[records.Op]:
        """Clones in the graph of the op's clone that come right before it, looking through ops
        whose clones are in other graphs."""
        found, seen = set(), set()
        pending = [*self._graph.befores[op]]
        while pending:
            earlier = pending.pop()
            if earlier in seen or earlier not in clones:
                continue
            seen.add(earlier)
            if clones[earlier].graph is clones[op].graph:
                found.add(clones[earlier])
            else:
                pending += self._graph.befores.get(earlier, ())
        return found


def _ancestors(graph: records.Graph, op: records.Op) -> set[records.Op]:
    """Ops that must come before ``op``, by data or by constraints."""
    found: set[records.Op] = set()
    pending = [op]
    while pending:
        here = pending.pop()
        made = [v.producer for v in here.inputs if v is not None and v.producer is not None]
        new = {*made, *graph.befores.get(here, ())} - found
        found |= new
        pending.extend(new)
    return found
