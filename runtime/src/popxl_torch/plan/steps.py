"""A plan is a list of steps over numbered slots.

A step's ``kind`` says what the executor does: the kinds that ``executor/run.py`` lists (streams,
remote memory, states, loops, conditionals, marks of the trace), or else a kernel of that kind.
``frees`` are the slots whose values die with the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from popxl_torch.ir.opdef import kinds, opdef
from popxl_torch.ir.records import Spec

LONGEST = 4096
"""Iterations of a loop up to which it is known before a run what only depends on their number."""

SMALL = 1024
"""Elements of a result up to which it is known before a run, if all that it is made of is."""

VIEWS = frozenset({
    "Detach", "Expand", "Identity", "JoinColumns", "JoinRows", "Reshape", "Slice", "Split",
    "Transpose",
})  # fmt: skip
"""Kinds that may give a view of their first input."""


@dataclass(slots=True)
class Operand:
    """A slot with what is known of its value: per-replica spec, and whether replicas differ."""

    slot: int
    spec: Spec
    varying: bool = False


@dataclass(slots=True)
class Step:
    """One thing to do."""

    kind: str
    ins: tuple[Operand, ...] = ()
    outs: tuple[Operand, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    bodies: tuple[Body, ...] = ()
    frees: tuple[int, ...] = ()
    where: str = ""


@dataclass(slots=True)
class Body:
    """Steps of a loop or branch. A loop writes ``params`` before each iteration."""

    params: tuple[Operand, ...]
    steps: list[Step]
    results: tuple[Operand, ...]


@dataclass(slots=True)
class Plan:
    """A program ready to be bound to a backend."""

    replicas: int
    num_slots: int
    constants: list[tuple[int, Spec, np.ndarray]]
    body: Body

    def steps(self) -> Iterator[Step]:
        """Every step, nested ones included."""
        return _walk(self.body)

    def __str__(self) -> str:
        return "\n".join(_lines(self.body, ""))


def _walk(body: Body) -> Iterator[Step]:
    for step in body.steps:
        yield step
        for inner in step.bodies:
            yield from _walk(inner)


def reads(step: Step) -> set[int]:
    """Slots that a step takes from around its bodies (and its own inputs)."""
    used = {operand.slot for operand in step.ins}
    for body in step.bodies:
        inside = {operand.slot for operand in body.params}
        for inner in body.steps:
            used |= reads(inner) - inside
            inside |= {operand.slot for operand in inner.outs}
        used |= {operand.slot for operand in body.results} - inside
    return used


def _lines(body: Body, indent: str) -> Iterator[str]:
    for step in body.steps:
        outs = ", ".join(f"${o.slot}{'~' if o.varying else ''}:{o.spec}" for o in step.outs)
        ins = ", ".join(f"${o.slot}" for o in step.ins)
        frees = f"  free {list(step.frees)}" if step.frees else ""
        yield f"{indent}{outs} = {step.kind}({ins}){frees}"
        for inner in step.bodies:
            yield from _lines(inner, indent + "    ")


def is_small(step: Step) -> bool:
    """Whether a step only computes, and next to nothing."""
    if step.kind not in kinds() or opdef(step.kind).effect:
        return False
    return all(operand.spec.nelms <= SMALL for operand in (*step.ins, *step.outs))
