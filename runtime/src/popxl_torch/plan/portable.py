"""Plans as JSON, apart from the program that they were made for.

What a plan refers to (streams, buffers, variables, constants) is written by its place in the
program, so a plan that was read can be used for any program of equal content. What is read is
checked: a plan that is not well-formed raises an error here, not in a run.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from popxl_torch.ir.records import Buffer, Program, Spec, Stream, Value
from popxl_torch.plan.steps import Body, Operand, Plan, Step

_INLINE_BYTES = 1 << 16
"""Size of a constant that passes made and that is written with the plan."""


class NotPortableError(Exception):
    """Something in a plan that JSON or another program does not have; or a text that is no plan."""


class Portable:
    """Writes and reads what belongs to one program."""

    def __init__(self, program: Program) -> None:
        self._streams = program.streams
        self._buffers = program.buffers
        self._states = program.main.values
        self._graphs = program.graphs
        self._places = {
            id(value.data): [graph.id, value.id]
            for graph in program.graphs.values()
            for value in graph.values.values()
            if value.kind == "constant"
        }

    # -- references -------------------------------------------------------------------------

    def refer(self, thing: Stream | Buffer | Value) -> Any:
        """A stream or buffer by its number, a variable by its id."""
        if isinstance(thing, Value):
            if self._states.get(thing.id) is not thing:
                raise NotPortableError(f"{thing} is not of the main graph")
            return thing.id
        return (self._streams if isinstance(thing, Stream) else self._buffers).index(thing)  # type: ignore[arg-type]

    def stream(self, number: Any) -> Stream:
        """The stream of a number."""
        return _element(self._streams, number)

    def buffer(self, number: Any) -> Buffer:
        """The buffer of a number."""
        return _element(self._buffers, number)

    def state(self, name: Any) -> Value:
        """The variable of an id."""
        _expect(name in self._states, f"a variable {name!r}")
        return self._states[name]

    # -- plans ------------------------------------------------------------------------------

    def dump(self, plan: Plan) -> dict[str, Any]:
        """A plan as lists, texts and numbers.

        Raises:
            NotPortableError: an attribute or a constant cannot be written.
        """
        tables = _Tables()
        constants = [
            [slot, tables.spec(spec), self._dump_array(array)]
            for slot, spec, array in plan.constants
        ]
        body = self._dump_body(plan.body, tables)
        return {
            "replicas": plan.replicas,
            "slots": plan.num_slots,
            "specs": list(tables.specs),
            "notes": list(tables.notes),
            "constants": constants,
            "body": body,
        }

    def load(self, content: Mapping[str, Any], kinds: Iterable[str]) -> Plan:
        """The plan for this program.

        Args:
            content: what :meth:`dump` gave.
            kinds: kinds of steps that there are.

        Raises:
            Exception: it is not well-formed.
        """
        reader = _Reader(self, content, frozenset(kinds))
        constants = [
            (reader.slot(slot), reader.spec(spec), self._load_array(array))
            for slot, spec, array in content["constants"]
        ]
        replicas = _integer(content["replicas"])
        return Plan(replicas, reader.num_slots, constants, reader.body(content["body"]))

    def _dump_array(self, array: np.ndarray) -> Any:
        if id(array) in self._places:
            return self._places[id(array)]
        if array.nbytes > _INLINE_BYTES or array.dtype.fields or array.dtype.hasobject:
            raise NotPortableError(f"a constant of {array.nbytes} bytes, {array.dtype}")
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}

    def _load_array(self, content: Any) -> np.ndarray:
        if isinstance(content, list):
            graph, name = content
            value = self._graphs[graph].values[name]
            _expect(value.kind == "constant", f"{name!r} to be a constant")
            return value.data
        dtype = np.dtype(str(content["dtype"]))
        _expect(not dtype.hasobject, "numbers")
        flat = np.frombuffer(base64.b64decode(content["data"]), dtype)
        return flat.reshape([_integer(n) for n in content["shape"]])

    def _dump_body(self, body: Body, tables: _Tables) -> list[Any]:
        return [
            tables.operands(body.params),
            [
                [
                    step.kind,
                    tables.operands(step.ins),
                    tables.operands(step.outs),
                    {name: self._dump_attr(value) for name, value in step.attrs.items()},
                    [self._dump_body(inner, tables) for inner in step.bodies],
                    list(step.frees),
                    tables.notes.setdefault(step.where, len(tables.notes)),
                ]
                for step in body.steps
            ],
            tables.operands(body.results),
        ]

    def _dump_attr(self, value: Any) -> Any:
        if isinstance(value, Stream | Buffer | Value):
            return {type(value).__name__: self.refer(value)}
        if isinstance(value, tuple | list):
            return [self._dump_attr(item) for item in value]
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise NotPortableError(f"an attribute of type {type(value).__name__}")

    def load_attr(self, value: Any) -> Any:
        """An attribute from what :meth:`dump` wrote."""
        if isinstance(value, list):
            return tuple(self.load_attr(item) for item in value)
        if isinstance(value, dict):
            ((kind, reference),) = value.items()
            find: dict[str, Callable[[Any], Any]] = {
                "Stream": self.stream, "Buffer": self.buffer, "Value": self.state
            }  # fmt: skip
            return find[kind](reference)
        return value


class _Tables:
    """Specs and notes, of which there are few, written once."""

    def __init__(self) -> None:
        self.specs: dict[tuple[Any, ...], int] = {}
        self.notes: dict[str, int] = {}

    def spec(self, spec: Spec) -> int:
        key = (spec.shape, spec.dtype, spec.meta_shape)
        return self.specs.setdefault(key, len(self.specs))

    def operands(self, operands: Iterable[Operand]) -> list[list[int]]:
        return [[o.slot, self.spec(o.spec), int(o.varying)] for o in operands]


class _Reader:
    def __init__(
        self, portable: Portable, content: Mapping[str, Any], kinds: frozenset[str]
    ) -> None:
        self.portable = portable
        self.kinds = kinds
        self.num_slots = _integer(content["slots"])
        self._specs = [_spec(*entry) for entry in content["specs"]]
        self._notes = content["notes"]
        _expect(all(isinstance(note, str) for note in self._notes), "notes")

    def slot(self, slot: Any) -> int:
        _expect(0 <= _integer(slot) < self.num_slots, f"a slot, not {slot}")
        return slot

    def spec(self, number: Any) -> Spec:
        return _element(self._specs, number)

    def operands(self, content: Any) -> tuple[Operand, ...]:
        return tuple(
            Operand(self.slot(slot), self.spec(spec), bool(_integer(varying)))
            for slot, spec, varying in content
        )

    def body(self, content: Any) -> Body:
        params, steps, results = content
        return Body(
            self.operands(params), [self.step(*step) for step in steps], self.operands(results)
        )

    def step(
        self, kind: Any, ins: Any, outs: Any, attrs: Any, bodies: Any, frees: Any, note: Any
    ) -> Step:
        _expect(kind in self.kinds, f"a kind of step, not {kind!r}")
        return Step(
            kind,
            self.operands(ins),
            self.operands(outs),
            {name: self.portable.load_attr(value) for name, value in attrs.items()},
            tuple(self.body(body) for body in bodies),
            tuple(self.slot(slot) for slot in frees),
            _element(self._notes, note),
        )


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise NotPortableError(f"expected {what}")


def _integer(value: Any) -> int:
    _expect(type(value) is int, f"an integer, not {value!r}")
    return value


def _element(items: Any, number: Any) -> Any:
    _expect(0 <= _integer(number) < len(items), f"a number below {len(items)}, not {number}")
    return items[number]


def _spec(shape: Any, dtype: Any, meta_shape: Any) -> Spec:
    _expect(isinstance(dtype, str), "a dtype")
    return Spec(tuple(map(_integer, shape)), dtype, tuple(map(_integer, meta_shape)))
