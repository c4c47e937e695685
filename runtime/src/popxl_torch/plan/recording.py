"""Which parts of a plan can be recorded once and replayed: those that need nothing of the host.

A part is a row of steps of the main block, or of a branch that is taken, with loops as a whole.
It becomes one step of kind ``Recorded`` around them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from popxl_torch.ir.records import Buffer
from popxl_torch.plan.steps import LONGEST, SMALL, VIEWS, Body, Plan, Step, is_small, reads

LEAST = 8
"""Steps, those of loops counted as often as they run, for which a recording pays."""

_REASONS = {
    "Decide": "it depends on data what runs",
    "HostLoad": "it reads a stream of the host",
    "HostStore": "it writes a stream of the host",
    "If": "it depends on data what runs",
    "RemoteStore": "it gives an entry of remote memory another place",
    "WriteState": "it gives a variable another place",
}


@dataclass(frozen=True, slots=True)
class Device:
    """What decides besides the plan.

    Attributes:
        is_fixed: whether all entries of a buffer stay at their places on the device.
        stays: whether the device has all entries of a buffer that runs store to.
        host_kinds: of kernels that need the host.
        traced: whether marks of the trace do something.
    """

    is_fixed: Callable[[Buffer], bool]
    stays: Callable[[Buffer], bool]
    host_kinds: Collection[str]
    traced: bool = False


def record_parts(plan: Plan, device: Device) -> tuple[Plan, list[str]]:
    """The plan with its parts that can be recorded, and for every other step the reason."""
    finder = _Finder(plan, device)
    return replace(plan, body=finder.body(plan.body)), finder.reasons


class _Finder:
    def __init__(self, plan: Plan, device: Device) -> None:
        self.device = device
        self.written = {s.attrs["state"] for s in plan.steps() if s.kind == "WriteState"}
        self.reasons: list[str] = []
        # Slots of numbers that are known before a run, and of weights that have no fixed place.
        self.known = {slot for slot, spec, _ in plan.constants if spec.nelms <= SMALL}
        self.passing: set[int] = set()

    def body(self, body: Body) -> Body:
        """A body that runs once in a run, with its parts."""
        steps: list[Step] = []
        row: list[Step] = []
        for step in body.steps:
            reason = None if step.kind == "Taken" else self.why_not(step)
            if reason is None and step.kind != "Taken":
                row.append(step)
                continue
            steps += _part(row)
            row = []
            if reason is None:
                (inner,) = step.bodies
                step = replace(step, bodies=(self.body(inner),))
                self._carry(step)
            else:
                self.reasons.append(f"{step.kind}: {reason}{f' ({step.where})' * bool(step.where)}")
            steps.append(step)
        return replace(body, steps=[*steps, *_part(row)])

    def _carry(self, step: Step) -> None:
        (inner,) = step.bodies
        for out, result in zip(step.outs, inner.results, strict=True):
            if result.slot in self.passing:
                self.passing.add(out.slot)

    def why_not(self, step: Step) -> str | None:
        """Why a step needs the host; None if it does not."""
        if step.kind == "Loop":
            return self._loop(step)
        reason = self._reason(step)
        if reason is None and not step.bodies and self._is_number(step):
            self.known |= {out.slot for out in step.outs}
        for inner in step.bodies:
            reason = reason or self._first(inner.steps)
        return reason

    def _reason(self, step: Step) -> str | None:
        if self.passing & reads(step):
            if step.kind in VIEWS:
                self.passing |= {out.slot for out in step.outs}
            return "it uses weights that have no fixed place"
        if step.kind in _REASONS:
            return _REASONS[step.kind]
        if step.kind == "Mark" and self.device.traced:
            return "the trace tells regions apart"
        if step.kind in self.device.host_kinds:
            return "its kernel needs the host"
        if step.kind == "ReadState" and step.attrs["state"] in self.written:
            return "it reads a variable that the run writes"
        if step.kind == "RemoteLoad" and not self.device.is_fixed(step.attrs["buffer"]):
            self.passing |= {out.slot for out in step.outs}
            return "it loads weights that have no fixed place"
        if step.kind == "RemoteUpdate" and not self.device.stays(step.attrs["buffer"]):
            self.passing |= {out.slot for out in step.outs}
            return "it writes an entry that may lie on the host"
        if step.kind in ("RemoteLoad", "RemoteUpdate") and step.ins[0].slot not in self.known:
            return "data tell which entry it is"
        return None

    def _is_number(self, step: Step) -> bool:
        """Whether a step only computes small results of what is known."""
        slots = {operand.slot for operand in step.ins}
        return bool(slots) and slots <= self.known and is_small(step)

    def _first(self, steps: Sequence[Step]) -> str | None:
        """The first reason of some steps; all of them are looked at."""
        found = [self.why_not(step) for step in steps]
        return next((reason for reason in found if reason is not None), None)

    def _loop(self, step: Step) -> str | None:
        (body,), count = step.bodies, int(step.attrs["count"])
        if count > LONGEST:
            return f"it has {count} iterations"
        pairs = list(zip(body.params, step.ins, body.results, step.outs, strict=True))
        numbers = [pair for pair in pairs if pair[1].slot in self.known]
        outside = set(self.known)
        while True:
            self.known = outside | {param.slot for param, _, _, _ in numbers}
            reason = self._first(body.steps)
            stay = [pair for pair in numbers if pair[2].slot in self.known]
            if len(stay) == len(numbers):
                break
            numbers = stay
        self.known = outside | {out.slot for _, _, _, out in numbers}
        return reason


def _part(row: list[Step]) -> list[Step]:
    """A row of steps as one step, if that pays."""
    if sum(map(_runs, row)) < LEAST:
        return row
    made = {out.slot: out for step in row for out in step.outs}
    freed = {slot for step in row for slot in step.frees}
    outs = tuple(out for slot, out in made.items() if slot not in freed)
    inner = [
        replace(step, frees=tuple(slot for slot in step.frees if slot in made)) for step in row
    ]
    attrs = {
        "buffers": tuple({s.attrs["buffer"] for s in _walk(row) if s.kind == "RemoteUpdate"}),
        "states": tuple({s.attrs["state"] for s in _walk(row) if s.kind == "ReadState"}),
    }
    frees = tuple(sorted(freed - made.keys()))
    return [Step("Recorded", (), outs, attrs, (Body((), inner, outs),), frees, row[0].where)]


def _runs(step: Step) -> int:
    if step.kind == "Mark":
        return 0
    inner = sum(_runs(s) for body in step.bodies for s in body.steps)
    return inner * int(step.attrs["count"]) if step.kind == "Loop" else inner + 1


def _walk(steps: Sequence[Step]) -> list[Step]:
    found = list(steps)
    for step in steps:
        for body in step.bodies:
            found += _walk(body.steps)
    return found
