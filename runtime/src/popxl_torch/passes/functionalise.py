"""Inline calls and turn aliases and in-place ops into new versions of values.

Every tensor of a graph being inlined has a *cell*. The cell of an aliasing op's output knows its
parent cells and the view that derives it; writing it writes the parents through the inverse view,
and reading it derives it again if a parent has changed since. Call inputs get fresh cells (calls
are by value); modified inputs are written back to the caller's cell afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from popxl_torch.ir.opdef import opdef
from popxl_torch.ir.records import Graph, Op, Program, Spec, Value
from popxl_torch.passes.ssa import Block, Functional, Node, Val

_FRAGMENTS = ("WeightsFromHostFragment", "WeightsToHostFragment")


@dataclass(eq=False, slots=True)
class _Cell:
    """Current contents of a tensor. ``seen`` are the parents' values it was derived from."""

    val: Val | None = None
    parents: tuple[_Cell, ...] = ()
    view: tuple[str, dict[str, Any], Spec] | None = None
    seen: tuple[Val, ...] = field(default=())


_Frame = dict[Value, _Cell]


def functionalise(program: Program) -> Functional:
    """The functional form of ``program``'s main graph."""
    return _Functionaliser(program).run()


class _Functionaliser:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.constants: dict[Value, Val] = {}
        self.names = itertools.count()
        self.block = Block()
        self.region = ""
        self.has_regions = True  # of the graph at hand: the main graph and branches within it
        self.where = ""
        self.lowerings: dict[str, Callable[[Op, _Frame], None]] = {
            "Call": self._call,
            "Loop": self._loop,
            "If": self._if,
            "RemoteCodeLoad": lambda op, frame: None,
        }

    def run(self) -> Functional:
        fragments = {name: self._fragment(name) for name in (*_FRAGMENTS, "")}
        return Functional(
            self.program.replication,
            fragments[""],
            fragments[_FRAGMENTS[0]],
            fragments[_FRAGMENTS[1]],
            list(self.constants.values()),
        )

    def _fragment(self, context: str) -> Block:
        """The main graph's ops of one execution context; tensors of others are states."""
        self.block = Block()
        frame: _Frame = {}
        read: dict[Value, Val] = {}
        self.states, self.read_states = frame, read
        for op in self.program.main.ops:
            if (op.context if op.context in _FRAGMENTS else "") == context:
                self.region = op.scopes[0] if op.scopes else ""
                self._lower(op, frame)
        for value, cell in list(frame.items()):
            if value.kind == "variable" or self._crosses_fragments(value):
                current = self._read(cell)
                if read.get(value) is not current:
                    self._emit("WriteState", [current], [], {"state": value})
        return self.block

    def _crosses_fragments(self, value: Value) -> bool:
        """Whether a tensor made by an op of a weight-transfer fragment lives across runs."""
        producer = value.producer
        return producer is not None and producer.context in _FRAGMENTS

    # -- cells ------------------------------------------------------------------------------

    def _cell(self, value: Value, frame: _Frame) -> _Cell:
        """The cell of a tensor; constants and states get theirs on first use."""
        if value in frame:
            return frame[value]
        if value.kind == "constant":
            if value not in self.constants:
                const = Val(value.spec, f"const{next(self.names)}", const=value.data)
                self.constants[value] = const
            cell = _Cell(self.constants[value])
        else:
            (val,) = self._emit("ReadState", [], [value.spec], {"state": value})
            self.read_states[value] = val
            cell = _Cell(val)
        frame[value] = cell
        return cell

    def _read(self, cell: _Cell) -> Val:
        if not cell.parents:
            assert cell.val is not None
            return cell.val
        current = tuple(self._read(parent) for parent in cell.parents)
        if cell.val is None or current != cell.seen:
            assert cell.view is not None
            kind, attrs, spec = cell.view
            (cell.val,) = self._emit(kind, list(current), [spec], attrs)
            cell.seen = current
        return cell.val

    def _write(self, cell: _Cell, val: Val) -> None:
        cell_view = cell.view
        if cell_view is not None:
            for index, parent in enumerate(cell.parents):
                self._write(parent, self._unview(cell_view, cell.parents, index, val))
            cell.seen = tuple(self._read(parent) for parent in cell.parents)
        cell.val = val

    def _unview(
        self, view: tuple[str, dict[str, Any], Spec], parents: Sequence[_Cell], index: int, val: Val
    ) -> Val:
        """New contents of parent ``index`` after its view became ``val``."""
        kind, attrs, _ = view
        old = self._read(parents[index])
        if kind == "Reshape":
            return self._emit("Reshape", [val], [old.spec], {"shape": old.spec.shape})[0]
        if kind == "Transpose":
            perm = attrs["perm"]
            inverse = tuple(perm.index(axis) for axis in range(len(perm)))
            return self._emit("Transpose", [val], [old.spec], {"perm": inverse})[0]
        if kind == "Slice":
            return self._emit("SliceUpdate", [old, val], [old.spec], attrs)[0]
        if kind == "Concat":
            axis = attrs["axis"]
            start = sum(self._read(p).spec.shape[axis] for p in parents[:index])
            rank = len(old.spec.shape)
            starts, stops = [0] * rank, list(val.spec.shape)
            starts[axis], stops[axis] = start, start + old.spec.shape[axis]
            cut = {"starts": tuple(starts), "stops": tuple(stops), "steps": (1,) * rank}
            return self._emit("Slice", [val], [old.spec], cut)[0]
        return self._emit("Identity", [val], [old.spec], {})[0]

    # -- ops --------------------------------------------------------------------------------

    def _emit(
        self, kind: str, inputs: list[Val], specs: Sequence[Spec], attrs: dict[str, Any]
    ) -> list[Val]:
        outputs = [Val(spec, str(next(self.names))) for spec in specs]
        self.block.nodes.append(
            Node(kind, inputs, outputs, attrs, where=self.where, region=self.region)
        )
        return outputs

    def _lower(self, op: Op, frame: _Frame) -> None:
        self.where = op.where()
        if op.kind in self.lowerings:
            self.lowerings[op.kind](op, frame)
            return
        facts = opdef(op.kind)
        if facts.view:
            parents = tuple(self._cell(v, frame) for v in op.inputs if v is not None)
            view = (facts.pure or op.kind, op.attrs, op.outputs[0].spec)
            frame[op.outputs[0]] = _Cell(parents=parents, view=view)
            return
        inputs = [self._read(self._cell(v, frame)) for v in op.inputs if v is not None]
        if op.kind in ("HostLoad", "RemoteLoad", "RemoteLoadInplace"):
            inputs = inputs[1:]  # the tensor that receives the data has no value of its own
        attrs = op.attrs
        if any(v is None for v in op.inputs):
            attrs = {**attrs, "connected": tuple(v is not None for v in op.inputs)}
        outputs = self._emit(facts.pure or op.kind, inputs, [v.spec for v in op.outputs], attrs)
        if facts.writes is None:
            for value, val in zip(op.outputs, outputs, strict=True):
                frame[value] = _Cell(val)
            return
        written = op.inputs[facts.writes]
        assert written is not None
        target = self._cell(written, frame)
        self._write(target, outputs[0])
        if written.spec == op.outputs[0].spec:
            frame[op.outputs[0]] = target  # one memory under two names
        else:
            frame[op.outputs[0]] = self._renamed(target, outputs[0], op.outputs[0].spec)
        for value, val in zip(op.outputs[1:], outputs[1:], strict=True):
            frame[value] = _Cell(val)

    def _renamed(self, target: _Cell, val: Val, spec: Spec) -> _Cell:
        """The cell of a tensor that is the same memory as ``target`` but has another spec."""
        return _Cell(val, (target,), ("Identity", {}, spec), (self._read(target),))

    def _inline(self, graph: Graph, cells: Sequence[_Cell | None], branch: bool = False) -> _Frame:
        frame: _Frame = {
            value: cell for value, cell in zip(graph.inputs, cells, strict=True) if cell is not None
        }
        outer = self.region, self.has_regions
        self.has_regions = self.has_regions and branch
        for op in graph.ops:
            if self.has_regions:
                self.region = op.scopes[0] if op.scopes else outer[0]
            self._lower(op, frame)
        self.region, self.has_regions = outer
        return frame

    def _call(self, op: Op, frame: _Frame) -> None:
        (graph,) = op.graphs
        parents = [self._cell(v, frame) for v in op.inputs if v is not None]
        cells = [_Cell(self._read(parent)) for parent in parents]
        inner = self._inline(graph, cells)
        results = [self._read(self._cell(value, inner)) for value in graph.outputs]
        for index in sorted(op.attrs["modified"]):
            self._write(parents[index], self._read(cells[index]))
        for value, val in zip(op.outputs, results, strict=True):
            frame[value] = _Cell(val)

    def _loop(self, op: Op, frame: _Frame) -> None:
        (wrapper,) = op.graphs
        parents = [self._cell(v, frame) for v in op.inputs if v is not None]
        starts = [self._read(parent) for parent in parents]
        modified = sorted(op.attrs["modified"])
        carried = len(op.outputs)
        # Loop state: carried inputs; then what modified inputs held at the end of an iteration.
        state = [*range(carried), *(k for k in modified)]
        outer, self.block = self.block, Block()
        body = self.block
        body.params = [Val(starts[k].spec, str(next(self.names))) for k in state]
        cells: list[_Cell | None] = [_Cell(start) for start in starts]
        for position, k in enumerate(state):
            if position < carried or k >= carried:
                cells[k] = _Cell(body.params[position])
        inner = self._inline(wrapper, [None, None, *cells])
        body.results = [self._read(self._cell(v, inner)) for v in wrapper.outputs[1:]]
        body.results += [self._read(self._cell(wrapper.inputs[k + 2], inner)) for k in modified]
        self.block, self.where = outer, op.where()
        count = op.attrs["count"]
        outputs = self._emit(
            "Loop", [starts[k] for k in state], [starts[k].spec for k in state], {"count": count}
        )
        self.block.nodes[-1].blocks = (body,)
        for value, val in zip(op.outputs, outputs, strict=False):
            frame[value] = _Cell(val)
        for k, val in zip(modified, outputs[carried:], strict=True):
            self._write(parents[k], val)

    def _if(self, op: Op, frame: _Frame) -> None:
        values = [None if v is None else self._read(self._cell(v, frame)) for v in op.inputs]
        num_then = op.attrs["num_then"]
        outer = self.block
        blocks = []
        for graph, given in zip(
            op.graphs, (values[1 : 1 + num_then], values[1 + num_then :]), strict=True
        ):
            self.block = Block()
            cells = [None if v is None else _Cell(v) for v in given]
            inner = self._inline(graph, cells, branch=True)
            self.block.results = [self._read(self._cell(value, inner)) for value in graph.outputs]
            blocks.append(self.block)
        self.block, self.where = outer, op.where()
        assert values[0] is not None
        outputs = self._emit("If", [values[0]], [v.spec for v in op.outputs], {})
        self.block.nodes[-1].blocks = tuple(blocks)
        for value, val in zip(op.outputs, outputs, strict=True):
            frame[value] = _Cell(val)
