"""The oracle: replicas one by one, graphs as the program built them, real aliases and writes.

Shares nothing with the passes: calls run frame by frame, an aliasing op gives a torch view, an
in-place op writes into its tensor. Where torch has no view (``concat_``, reversed slices), the
alias is a copy, linked element by element to what it aliases: a write to one side is carried to the
other. Every value is a list with one tensor per replica. Slow; used to check the vectorised plans,
and for programs in which replicas take different paths with effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from popxl_torch.backends.base import Backend
from popxl_torch.executor.memory import Memory
from popxl_torch.ir.errors import popart_runtime_error
from popxl_torch.ir.opdef import opdef
from popxl_torch.ir.records import Graph, Op, Program, Spec, Value
from popxl_torch.plan.steps import Operand, Step

Replicas = list[Any]
_Frame = dict[Value, Replicas]
_CONTEXTS = {"from_host": "WeightsFromHostFragment", "to_host": "WeightsToHostFragment"}


@dataclass(eq=False, slots=True)
class _Link:
    """An alias that is a copy: element i of ``alias`` is element ``places[i]`` of the parents, laid
    end to end."""

    parents: list[Any]
    alias: Any
    places: Any

    def push(self) -> None:
        """Carry the alias's values to the parents."""
        flat = torch.cat([parent.reshape(-1) for parent in self.parents])
        flat[self.places] = self.alias.reshape(-1)
        parts = flat.split([parent.numel() for parent in self.parents])
        for parent, part in zip(self.parents, parts, strict=True):
            parent.copy_(part.reshape(parent.shape))

    def pull(self) -> None:
        """Carry the parents' values to the alias."""
        flat = torch.cat([parent.reshape(-1) for parent in self.parents])
        self.alias.copy_(flat[self.places].reshape(self.alias.shape))


class Interpreter:
    """Runs a program's graphs directly."""

    def __init__(self, program: Program, backend: Backend, memory: Memory) -> None:
        self.program = program
        self.backend = backend
        self.memory = memory
        self.replicas = program.replication
        self.active = list(range(program.replication))
        self._bound: dict[Op, Callable[..., Any]] = {}
        self._links: list[_Link] = []
        self._handlers: dict[str, Callable[[Op, _Frame], None]] = {
            "Call": self._call,
            "Loop": self._loop,
            "If": self._if,
            "HostLoad": self._host_load,
            "HostStore": self._host_store,
            "RemoteLoad": self._remote_load,
            "RemoteLoadInplace": self._remote_load,
            "RemoteStore": self._remote_store,
            "RemoteCodeLoad": lambda op, frame: None,
        }

    def run(self, fragment: str) -> None:
        """Run the main graph's ops of one fragment: ``from_host``, ``main`` or ``to_host``."""
        context = _CONTEXTS.get(fragment)
        self._links.clear()
        self.frame: _Frame = {}
        self.read: dict[Value, Replicas] = {}
        for op in self.program.main.ops:
            if (op.context if op.context in _CONTEXTS.values() else None) == context:
                self._execute(op, self.frame)
        for value, tensors in self.frame.items():
            producer = value.producer
            lives = producer is not None and producer.context in _CONTEXTS.values()
            if value.kind == "variable" or lives:
                spec = value.spec
                self.memory.states[value] = self.backend.stack(
                    [self.backend.stored(t, spec) for t in tensors]
                ) if self.replicas > 1 else self.backend.stored(tensors[0], spec)  # fmt: skip

    def _get(self, value: Value, frame: _Frame) -> Replicas:
        if value not in frame:
            if value.kind == "constant":
                tensor = self.backend.from_host(value.data, value.spec)
                frame[value] = [_copy(tensor) for _ in range(self.replicas)]
            else:
                frame[value] = self._state(value)
        return frame[value]

    def _state(self, value: Value) -> Replicas:
        tensor = self.memory.states[value]
        lead = self.backend.has_lead(tensor, value.spec)
        parts = [tensor[r] if lead else tensor for r in range(self.replicas)]
        return [self.backend.stored(part, value.spec) for part in parts]

    def _execute(self, op: Op, frame: _Frame) -> None:
        handler = self._handlers.get(op.kind, self._compute)
        try:
            handler(op, frame)
        except Exception as error:
            if not getattr(error, "__notes__", None):
                error.add_note(f"while executing {op.where()}")
            raise

    def _run_graph(self, graph: Graph, inputs: list[Replicas | None]) -> _Frame:
        frame: _Frame = {
            value: tensors
            for value, tensors in zip(graph.inputs, inputs, strict=True)
            if tensors is not None
        }
        links = len(self._links)
        for op in graph.ops:
            self._execute(op, frame)
        del self._links[links:]  # of tensors of this graph: what leaves it is copied
        return frame

    # -- computation ------------------------------------------------------------------------

    def _compute(self, op: Op, frame: _Frame) -> None:
        facts = opdef(op.kind)
        inputs = [self._get(v, frame) for v in op.inputs if v is not None]
        kind = facts.pure or op.kind
        if kind.startswith("Replicated"):
            results = [self._collective(kind, op, inputs[0])]
        else:
            results = self._kernel(kind, op, inputs, copy=not facts.view)
        if facts.writes is not None:
            written = op.inputs[facts.writes]
            assert written is not None
            target = self._get(written, frame)
            for r in self.active:
                self._overwrite(target[r], results[0][r])
            results[0] = target
        for value, tensors in zip(op.outputs, results, strict=True):
            frame[value] = tensors

    def _kernel(self, kind: str, op: Op, inputs: list[Replicas], copy: bool) -> list[Replicas]:
        if op not in self._bound:
            attrs = op.attrs
            if any(v is None for v in op.inputs):
                attrs = {**attrs, "connected": tuple(v is not None for v in op.inputs)}
            ins = tuple(Operand(0, v.spec) for v in op.inputs if v is not None)
            outs = tuple(Operand(0, v.spec) for v in op.outputs)
            self._bound[op] = self.backend.bind(Step(kind, ins, outs, attrs, where=op.where()))
        function = self._bound[op]
        results: list[Replicas] = [[None] * self.replicas for _ in op.outputs]
        for r in self.active:
            made = function(*(tensors[r] for tensors in inputs))
            made = (made,) if len(op.outputs) == 1 else made
            for index, tensor in enumerate(made):
                given = [tensors[r] for tensors in inputs]
                results[index][r] = _copy(tensor) if copy else self._alias(op, tensor, given)
        return results

    def _alias(self, op: Op, made: Any, inputs: list[Any]) -> Any:
        """The alias ``made`` of ``inputs``; linked to them if it is a copy."""
        if len(inputs) == 1 and (not made.data_ptr() or _shares(made, inputs[0])):
            return made
        sizes = [tensor.numel() for tensor in inputs]
        numbers = torch.arange(sum(sizes), device=made.device).split(sizes)
        specs = [Spec(v.spec.shape, "int64") for v in op.inputs if v is not None]
        step = Step(
            opdef(op.kind).pure or op.kind,
            tuple(Operand(0, spec) for spec in specs),
            (Operand(0, Spec(op.outputs[0].spec.shape, "int64")),),
            op.attrs,
            where=op.where(),
        )
        numbered = [n.reshape(t.shape) for n, t in zip(numbers, inputs, strict=True)]
        places = self.backend.bind(step)(*numbered).reshape(-1)
        link = _Link(inputs, _copy(made), places)
        self._links.append(link)
        return link.alias

    def _overwrite(self, target: Any, value: Any) -> None:
        """Write into a tensor, and into all that aliases it without being a view of it."""
        target.copy_(value)
        written, pending = [target], list(self._links)
        while pending:
            link = next((k for k in pending if any(_touches(k, t) for t in written)), None)
            if link is None:
                return
            pending.remove(link)
            if any(_shares(link.alias, t) for t in written):
                link.push()
            link.pull()
            written += [*link.parents, link.alias]

    def _collective(self, kind: str, op: Op, inputs: Replicas) -> Replicas:
        if len(self.active) != self.replicas:
            raise popart_runtime_error(
                f"A collective inside a branch that only some replicas take: {op.where()}"
            )
        if op not in self._bound:
            ins = tuple(Operand(0, v.spec, varying=True) for v in op.inputs if v is not None)
            outs = tuple(Operand(0, v.spec, varying=True) for v in op.outputs)
            self._bound[op] = self.backend.bind(Step(kind, ins, outs, op.attrs, where=op.where()))
        together = self._bound[op](torch.stack(inputs))
        return [_copy(together[r]) for r in range(self.replicas)]

    # -- control flow -----------------------------------------------------------------------

    def _copies(self, tensors: Replicas) -> Replicas:
        return [None if t is None else _copy(t) for t in tensors]

    def _bind_call(self, op: Op, values: list[Value | None], frame: _Frame) -> list[Any]:
        """Inputs by value, except the modified ones, which share the caller's memory."""
        bound: list[Any] = []
        for index, value in enumerate(values):
            if value is None:
                bound.append(None)
                continue
            tensors = self._get(value, frame)
            shared = index in op.attrs.get("modified", ())
            bound.append(tensors if shared else self._copies(tensors))
        return bound

    def _call(self, op: Op, frame: _Frame) -> None:
        (graph,) = op.graphs
        inner = self._run_graph(graph, self._bind_call(op, op.inputs, frame))
        for value, result in zip(op.outputs, graph.outputs, strict=True):
            frame[value] = self._copies(self._get(result, inner))

    def _loop(self, op: Op, frame: _Frame) -> None:
        (wrapper,) = op.graphs
        user = op.inputs[2:]
        parents = [self._get(v, frame) for v in user if v is not None]
        carried = [self._copies(t) for t in parents[: len(op.outputs)]]
        for _ in range(op.attrs["count"]):
            inputs: list[Any] = [None, None]
            for index, parent in enumerate(parents):
                start = carried[index] if index < len(carried) else parent
                if index not in op.attrs["modified"]:
                    inputs.append(self._copies(start))
                    continue
                for r in self.active:
                    self._overwrite(parent[r], start[r])
                inputs.append(parent)
            inner = self._run_graph(wrapper, inputs)
            carried = [self._copies(self._get(v, inner)) for v in wrapper.outputs[1:]]
        for value, tensors in zip(op.outputs, carried, strict=True):
            frame[value] = tensors

    def _if(self, op: Op, frame: _Frame) -> None:
        condition = self._get(op.inputs[0], frame)  # type: ignore[arg-type]
        num_then = op.attrs["num_then"]
        given = (op.inputs[1 : 1 + num_then], op.inputs[1 + num_then :])
        results: list[Replicas] = [[None] * self.replicas for _ in op.outputs]
        everyone = self.active
        for branch, (graph, values) in enumerate(zip(op.graphs, given, strict=True)):
            self.active = [r for r in everyone if bool(condition[r].item()) == (branch == 0)]
            if self.active:
                inner = self._run_graph(graph, self._bind_call(op, list(values), frame))
                for index, value in enumerate(graph.outputs):
                    tensors = self._get(value, inner)
                    for r in self.active:
                        results[index][r] = _copy(tensors[r])
        self.active = everyone
        for value, tensors in zip(op.outputs, results, strict=True):
            frame[value] = tensors

    # -- input and output -------------------------------------------------------------------

    def _host_load(self, op: Op, frame: _Frame) -> None:
        loaded: Replicas = [None] * self.replicas
        for r in self.active:
            loaded[r] = _copy(self.memory.streams.load_replica(op.attrs["stream"], r))
        frame[op.outputs[0]] = loaded

    def _host_store(self, op: Op, frame: _Frame) -> None:
        (value,) = op.inputs
        assert value is not None
        tensors = self._get(value, frame)
        for r in self.active:
            self.memory.streams.store_replica(op.attrs["stream"], tensors[r], r)

    def _remote_load(self, op: Op, frame: _Frame) -> None:
        target, offset = op.inputs
        assert target is not None
        assert offset is not None
        offsets = self._get(offset, frame)
        remote, buffer = self.memory.remote, op.attrs["buffer"]
        loaded: Replicas = [None] * self.replicas
        for r in self.active:
            entry = self.backend.integer(offsets[r])
            loaded[r] = _copy(remote.load_replica(buffer, entry, r))
        if op.kind == "RemoteLoadInplace":
            tensors = self._get(target, frame)
            for r in self.active:
                self._overwrite(tensors[r], loaded[r])
            loaded = tensors
        frame[op.outputs[0]] = loaded

    def _remote_store(self, op: Op, frame: _Frame) -> None:
        value, offset = op.inputs
        assert value is not None
        assert offset is not None
        tensors, offsets = self._get(value, frame), self._get(offset, frame)
        for r in self.active:
            entry = self.backend.integer(offsets[r])
            if self.replicas == 1:
                self.memory.remote.store(op.attrs["buffer"], entry, tensors[r])
            else:
                self.memory.remote.store_replica(op.attrs["buffer"], entry, tensors[r], r)


def _copy(tensor: Any) -> Any:
    """A row-major copy, so that every reshape of it is a view."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _touches(link: _Link, tensor: Any) -> bool:
    """Whether a link leads from or to the memory of ``tensor``."""
    return any(_shares(side, tensor) for side in (*link.parents, link.alias))


def _shares(a: Any, b: Any) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
