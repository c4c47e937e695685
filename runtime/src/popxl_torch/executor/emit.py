"""A plan becomes one Python function, with a local variable for each value:

    v4 = Add_0(v1, c2)
    del v1
    for i0 in range(28):
        v9 = MatMul_1(v4, w7[i0])

Functions are kernels and what ``executor/steps.py`` binds; ``c`` are constants, ``w`` what is known
before any run (see ``executor/fold.py``): weights above all, in a loop a table with an element for
each iteration. So a step costs a call beside its kernel, and a load of weights costs nothing.
``POPXL_TORCH_DEBUG=3`` shows the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.fold import Folder
from popxl_torch.executor.memory import Memory
from popxl_torch.executor.steps import bind_step
from popxl_torch.plan.steps import Body, Operand, Plan, Step, reads

_OFFSET = {"RemoteLoad": 0, "RemoteStore": 1, "RemoteUpdate": 0}
"""Which input is the number of an entry: it is given as an int, or a list of each replica's."""

_DEEPEST = 12
"""Nested blocks in one function; Python's grammar has a limit. Deeper ones are functions."""

_INDENT = "    "


class Emitter:
    """Writes the function ``run`` of a plan.

    Attributes:
        names: the function's globals.
        lines: its source.
        notes: for each line the step that it belongs to.
    """

    def __init__(self, plan: Plan, backend: Backend, memory: Memory) -> None:
        self.backend = backend
        self.memory = memory
        self.traced = memory.trace.active
        self.folder = Folder(backend, memory.remote)
        self.names: dict[str, Any] = {
            "entries": self._each_entry,
            "integer": backend.integer,
            "select": backend.select,
            "trace": memory.trace,
            "wait": backend.synchronise,
        }
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._known: dict[int, Any] = {}
        self._texts: dict[int, str] = {}
        self._columns: dict[int, list[Any]] = {}
        self._open: list[tuple[str, str]] = []
        self._depth = self._loops = self._parts = 0
        self._where = ""
        for slot, spec, array in plan.constants:
            self._know(slot, memory.constant(array, spec, backend), "c")
        self._function("run", (), plan.body.steps, ())

    @property
    def source(self) -> str:
        """The text of the function."""
        return "\n".join(self.lines)

    # -- text -------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self._open.append((_INDENT * self._depth + text, self._where))

    def _function(
        self, name: str, args: Iterable[str], steps: Iterable[Step], outs: Iterable[Operand]
    ) -> None:
        outer, depth, self._open, self._depth = self._open, self._depth, [], 0
        self._line(f"def {name}({', '.join(args)}):")
        self._depth = 1
        self._steps(steps)
        self._line(f"return {self._tuple(out.slot for out in outs)}")
        for text, where in self._open:
            self.lines.append(text)
            self.notes.append(where)
        self._open, self._depth = outer, depth

    def _name(self, prefix: str, value: Any) -> str:
        name = f"{prefix}{len(self.names)}"
        self.names[name] = value
        return name

    def _text(self, slot: int) -> str:
        return self._texts.get(slot, f"v{slot}")

    def _tuple(self, slots: Iterable[int]) -> str:
        texts = [self._text(slot) for slot in slots]
        return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"

    def _assign(self, targets: Iterable[Operand], sources: Iterable[Operand]) -> None:
        pairs = [
            (f"v{target.slot}", self._text(source.slot))
            for target, source in zip(targets, sources, strict=True)
            if target.slot not in self._texts
        ]
        if pairs:
            left, right = zip(*pairs, strict=True)
            self._line(f"{', '.join(left)} = {', '.join(right)}")

    def _delete(self, slots: Iterable[int]) -> None:
        names = [f"v{slot}" for slot in slots if slot not in self._texts]
        if names:
            self._line(f"del {', '.join(names)}")

    # -- what is known ----------------------------------------------------------------------

    def _know(self, slot: int, value: Any, prefix: str = "w") -> None:
        self._known[slot] = value
        self._texts[slot] = self._name(prefix, value)

    def _entry(self, offset: Operand) -> str:
        """The number of an entry as an int, or of each replica as a list."""
        text = self._text(offset.slot)
        if offset.varying:
            return f"entries({text})"
        if offset.slot in self._known:
            return str(self.backend.integer(self._known[offset.slot]))
        if offset.slot in self._columns:
            numbers = [self.backend.integer(tensor) for tensor in self._columns[offset.slot]]
            return f"{self._name('n', numbers)}{text[text.index('[') :]}"
        return f"integer({text})"

    def _each_entry(self, offsets: Any) -> list[int]:
        backend = self.backend
        return [backend.integer(backend.replica(offsets, r)) for r in range(backend.replicas)]

    def _count_bytes(self, loaded: Iterable[Any]) -> None:
        """Loads that are known beforehand are counted where they would be."""
        count = sum(map(self.backend.nbytes, loaded)) if self.traced else 0
        if count:
            self._line(f"trace.current.loaded_bytes += {count}")

    # -- steps ------------------------------------------------------------------------------

    def _steps(self, steps: Iterable[Step]) -> None:
        handlers = {"Mark": self._mark, "Recorded": self._recorded, "Taken": self._taken}
        handlers |= dict.fromkeys(("Loop", "If", "Select"), self._nested)
        for step in steps:
            self._where = step.where
            if any(out.slot in self._texts for out in step.outs):
                continue  # an element of a table
            if not self._fold(step):
                handlers.get(step.kind, self._call)(step)
            self._where = step.where
            self._delete(step.frees)

    def _fold(self, step: Step) -> bool:
        if step.bodies or not all(operand.slot in self._known for operand in step.ins):
            return False
        results = self.folder.fold(step, [self._known[operand.slot] for operand in step.ins])
        if results is None:
            return False
        for out, value in zip(step.outs, results, strict=True):
            self._know(out.slot, value)
        self._count_bytes(results if step.kind == "RemoteLoad" else ())
        return True

    def _call(self, step: Step) -> None:
        function = self._prepared(step)
        if function is not None:
            args = [f"v{o.slot}" for o in step.ins if o.slot not in self._texts]
        else:
            args = [self._text(operand.slot) for operand in step.ins]
            if step.kind in _OFFSET:
                args[_OFFSET[step.kind]] = self._entry(step.ins[_OFFSET[step.kind]])
            function = self._name(f"{step.kind}_", bind_step(step, self.backend, self.memory))
        outs = ", ".join(f"v{out.slot}" for out in step.outs)
        self._line(f"{outs}{' = ' if outs else ''}{function}({', '.join(args)})")

    def _prepared(self, step: Step) -> str | None:
        """A function of the inputs that are not known, or an element of a table of such."""
        slots = [operand.slot for operand in step.ins]
        tabled = [slot for slot in slots if slot in self._columns]
        indices = {self._texts[slot].partition("[")[2] for slot in tabled}
        if len(indices) > 1 or self._texts.keys().isdisjoint(slots):
            return None
        functions = []
        for at in range(len(self._columns[tabled[0]]) if tabled else 1):
            known = [
                self._columns[slot][at] if slot in tabled else self._known.get(slot)
                for slot in slots
            ]
            function = self.backend.prepare(step, known)
            if function is None:
                return None
            functions.append(function)
        if not tabled:
            return self._name(f"{step.kind}_", functions[0])
        return f"{self._name(f'{step.kind}_', functions)}[{indices.pop()}"

    def _mark(self, step: Step) -> None:
        if self.traced:
            region, runs = step.attrs["region"], int(step.attrs["runs"])
            self._line(f"wait(); trace.enter({region!r}, {runs})")

    def _nested(self, step: Step) -> None:
        write: Callable[[Step], None] = getattr(self, f"_{step.kind.lower()}")
        if self._depth < _DEEPEST:
            write(step)
            return
        # The rest is a function of what it reads.
        args = self._args(step) + [f"i{number}" for number in range(self._loops)]
        alone = Step(step.kind, step.ins, step.outs, step.attrs, step.bodies, where=step.where)
        name = self._part(args, [alone], step.outs)
        self._line(f"{_targets(step.outs)}{name}({', '.join(args)})")

    def _args(self, step: Step) -> list[str]:
        return [f"v{slot}" for slot in sorted(reads(step)) if slot not in self._texts]

    def _part(self, args: Iterable[str], steps: Iterable[Step], outs: Iterable[Operand]) -> str:
        """A function of its own; its name."""
        self._parts += 1
        name = f"part{self._parts}"
        self._function(name, args, steps, outs)
        return name

    def _recorded(self, step: Step) -> None:
        """A part that the backend may replay. What is known of its results is not returned."""
        (body,), args = step.bodies, self._args(step)
        part = self._part(args, body.steps, self._unknown(step.outs))
        function = self.backend.recorded(
            lambda *given: self.names[part](*given),
            lambda: self.memory.places(step.attrs["states"], step.attrs["buffers"]),
            self.memory.trace,
        )
        name = self._name("Recorded_", function)
        self._line(f"{_targets(self._unknown(step.outs))}{name}({', '.join(args)})")

    def _unknown(self, outs: Iterable[Operand]) -> Iterator[Operand]:
        """Looked at one by one: what is known may be more by then."""
        return (out for out in outs if out.slot not in self._texts)

    def _loop(self, step: Step) -> None:
        (body,) = step.bodies
        index = f"i{self._loops}"
        columns, ends = self.folder.tables(step, self._known)
        for slot, column in columns.items():
            self._columns[slot] = column
            self._texts[slot] = f"{self._name('w', column)}[{index}]"
        loads = [inner for inner in body.steps if inner.kind == "RemoteLoad"]
        self._count_bytes(t for load in loads for t in columns.get(load.outs[0].slot, ()))
        self._assign(body.params, step.ins)
        self._line(f"for {index} in range({int(step.attrs['count'])}):")
        self._loops += 1
        self._block(body, body.params)
        self._loops -= 1
        for out, param in zip(step.outs, body.params, strict=True):
            if param.slot in ends:
                self._know(out.slot, ends[param.slot])
        self._assign(step.outs, body.params)
        self._delete(param.slot for param in body.params)

    def _block(self, body: Body, targets: Iterable[Operand]) -> None:
        """An indented block that ends by giving its results to ``targets``."""
        self._depth += 1
        start = len(self._open)
        self._steps(body.steps)
        self._assign(targets, body.results)
        self._delete(_left_over(body))
        if len(self._open) == start:
            self._line("pass")
        self._depth -= 1

    def _if(self, step: Step) -> None:
        yes, no = step.bodies
        self._line(f"if integer({self._text(step.ins[0].slot)}):")
        self._block(yes, step.outs)
        self._line("else:")
        self._block(no, step.outs)

    def _taken(self, step: Step) -> None:
        (body,) = step.bodies
        self._steps(body.steps)
        self._assign(step.outs, body.results)
        self._delete(_left_over(body))

    def _select(self, step: Step) -> None:
        """A condition that differs by replica: both branches run, each replica takes its own."""
        for body in step.bodies:
            self._steps(body.steps)
        condition = self._text(step.ins[0].slot)
        results = [body.results for body in step.bodies]
        for out, yes, no in zip(step.outs, *results, strict=True):
            texts = condition, self._text(yes.slot), self._text(no.slot)
            self._line(f"v{out.slot} = select({', '.join(texts)})")
        for body in step.bodies:
            self._delete(_left_over(body))


def _targets(outs: Iterable[Operand]) -> str:
    """The left side of an assignment of a tuple, if there is anything to assign."""
    names = ", ".join(f"v{out.slot}" for out in outs)
    return f"({names},) = " if names else ""


def _left_over(body: Body) -> list[int]:
    """Slots that steps of the body fill and none of them frees: its results."""
    made = {operand.slot for step in body.steps for operand in step.outs}
    return sorted(made - {slot for step in body.steps for slot in step.frees})
