"""The loop: a plan bound to a backend becomes a list of functions, called in order.

Binding resolves everything that does not change from run to run, so a step costs little more than
its kernel. Errors keep their type and get a note naming op, graph and the user's line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Spec, Value
from popxl_torch.plan.steps import Body, Operand, Plan, Step

Action = Callable[[], None]


@dataclass(slots=True)
class Memory:
    """What outlives a run (states of variables, remote buffers, constants), streams, the trace."""

    remote: RemoteStore
    streams: HostStreams
    trace: Trace
    states: dict[Value, Any] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)

    def constant(self, array: Any, spec: Spec, backend: Backend) -> Any:
        """A constant's tensor, the same one for all plans. Its array lives as long as the Ir."""
        if id(array) not in self.constants:
            self.constants[id(array)] = backend.from_host(array, spec)
        return self.constants[id(array)]


class BoundPlan:
    """A plan that can be run any number of times."""

    def __init__(self, plan: Plan, backend: Backend, memory: Memory) -> None:
        self.backend = backend
        self.memory = memory
        self.slots: list[Any] = [None] * plan.num_slots
        self.constants = {slot for slot, _, _ in plan.constants}
        for slot, spec, array in plan.constants:
            self.slots[slot] = memory.constant(array, spec, backend)
        self.actions, self.notes = self._body(plan.body)
        self.num_steps = sum(1 for _ in plan.steps())

    def run(self) -> None:
        """Execute the steps. Nothing but constants is kept afterwards."""
        try:
            _execute(self.actions, self.notes)
        except BaseException:
            for slot in set(range(len(self.slots))) - self.constants:
                self.slots[slot] = None
            raise

    def _body(self, body: Body) -> tuple[list[Action], list[str]]:
        return [self._action(step) for step in body.steps], [step.where for step in body.steps]

    def _action(self, step: Step) -> Action:
        bind = _BINDERS.get(step.kind, _bind_compute)
        action = bind(self, step)
        return _then_free(action, self.slots, step.frees) if step.frees else action


def _execute(actions: list[Action], notes: list[str]) -> None:
    done = 0
    try:
        for action in actions:
            action()
            done += 1
    except Exception as error:
        if not getattr(error, "__notes__", None):
            error.add_note(f"while executing {notes[done]}")
        raise


def _then_free(action: Action, slots: list[Any], frees: tuple[int, ...]) -> Action:
    if len(frees) == 1:
        (only,) = frees

        def free_one() -> None:
            action()
            slots[only] = None

        return free_one

    def free_all() -> None:
        action()
        for slot in frees:
            slots[slot] = None

    return free_all


def _bind_compute(bound: BoundPlan, step: Step) -> Action:
    function = bound.backend.bind(step)
    slots = bound.slots
    ins = tuple(operand.slot for operand in step.ins)
    outs = tuple(operand.slot for operand in step.outs)
    if len(outs) == 1:
        return _single_output(function, slots, ins, outs[0])

    def run() -> None:
        for slot, result in zip(outs, function(*[slots[i] for i in ins]), strict=True):
            slots[slot] = result

    return run


def _single_output(
    function: Callable[..., Any], slots: list[Any], ins: tuple[int, ...], out: int
) -> Action:
    """The common arities without building an argument list."""
    if len(ins) == 1:
        (a,) = ins

        def run_one() -> None:
            slots[out] = function(slots[a])

        return run_one
    if len(ins) == 2:
        a, b = ins

        def run_two() -> None:
            slots[out] = function(slots[a], slots[b])

        return run_two

    def run() -> None:
        slots[out] = function(*[slots[i] for i in ins])

    return run


def _bind_mark(bound: BoundPlan, step: Step) -> Action:
    trace, region, runs = bound.memory.trace, step.attrs["region"], step.attrs["runs"]
    synchronise = bound.backend.synchronise if bound.memory.trace.path else lambda: None

    def run() -> None:
        synchronise()
        trace.enter(region, runs)

    return run


def _bind_expand(bound: BoundPlan, step: Step) -> Action:
    (source,), (target,) = step.ins, step.outs
    return _single_output(bound.backend.expand, bound.slots, (source.slot,), target.slot)


def _bind_host_load(bound: BoundPlan, step: Step) -> Action:
    slots, streams = bound.slots, bound.memory.streams
    stream, (out,) = step.attrs["stream"], step.outs

    def run() -> None:
        slots[out.slot] = streams.load(stream, out.varying)

    return run


def _bind_host_store(bound: BoundPlan, step: Step) -> Action:
    slots, streams = bound.slots, bound.memory.streams
    stream, (value,) = step.attrs["stream"], step.ins

    def run() -> None:
        streams.store(stream, slots[value.slot])

    return run


def _offsets(bound: BoundPlan, offset: Operand) -> Callable[[], list[int]]:
    """Each replica's entry."""
    slots, backend = bound.slots, bound.backend
    return lambda: [
        backend.integer(backend.replica(slots[offset.slot], r)) for r in range(backend.replicas)
    ]


def _bind_remote_load(bound: BoundPlan, step: Step) -> Action:
    slots, backend, remote = bound.slots, bound.backend, bound.memory.remote
    buffer, (offset,), (out,) = step.attrs["buffer"], step.ins, step.outs
    if offset.varying:
        entries = _offsets(bound, offset)

        def run_each() -> None:
            slots[out.slot] = remote.load_each(buffer, entries())

        return run_each

    def run() -> None:
        entry = backend.integer(slots[offset.slot])
        slots[out.slot] = remote.load(buffer, entry, out.varying)

    return run


def _bind_remote_store(bound: BoundPlan, step: Step) -> Action:
    slots, backend, remote = bound.slots, bound.backend, bound.memory.remote
    buffer, (value, offset) = step.attrs["buffer"], step.ins
    if offset.varying:
        entries = _offsets(bound, offset)

        def run_each() -> None:
            tensor = slots[value.slot]
            for replica, entry in enumerate(entries()):
                part = backend.replica(tensor, replica) if value.varying else tensor
                remote.store_replica(buffer, entry, part, replica)

        return run_each

    def run() -> None:
        remote.store(buffer, backend.integer(slots[offset.slot]), slots[value.slot])

    return run


def _bind_remote_update(bound: BoundPlan, step: Step) -> Action:
    slots, backend, remote = bound.slots, bound.backend, bound.memory.remote
    buffer, axes = step.attrs["buffer"], step.attrs["axes"]
    (offset, index, window), (out,) = step.ins, step.outs

    def run() -> None:
        entry = backend.integer(slots[offset.slot])
        starts, update = slots[index.slot], slots[window.slot]
        slots[out.slot] = remote.update(buffer, entry, axes, starts, update, out.varying)

    return run


def _bind_read_state(bound: BoundPlan, step: Step) -> Action:
    slots, backend, states = bound.slots, bound.backend, bound.memory.states
    state, (out,) = step.attrs["state"], step.outs

    def run() -> None:
        tensor = states[state]
        if out.varying and not backend.has_lead(tensor, out.spec):
            tensor = backend.expand(tensor)
        slots[out.slot] = tensor

    return run


def _bind_write_state(bound: BoundPlan, step: Step) -> Action:
    slots, backend, states = bound.slots, bound.backend, bound.memory.states
    state, (value,) = step.attrs["state"], step.ins

    def run() -> None:
        states[state] = backend.stored(slots[value.slot], value.spec)

    return run


def _left_over(body: Body) -> list[int]:
    """Slots that the body fills and no step of it frees: results, and parameters nobody reads.

    They are cleared once the results are moved.
    """
    own = {operand.slot for operand in body.params}
    own |= {operand.slot for step in body.steps for operand in step.outs}
    return sorted(own - {slot for step in body.steps for slot in step.frees})


def _bind_body(bound: BoundPlan, body: Body) -> Callable[[], list[Any]]:
    """A function that executes a body and takes its results out of the slots."""
    slots = bound.slots
    actions, notes = bound._body(body)
    results = [operand.slot for operand in body.results]
    own = _left_over(body)

    def run() -> list[Any]:
        _execute(actions, notes)
        values = [slots[slot] for slot in results]
        for slot in own:
            slots[slot] = None
        return values

    return run


def _bind_loop(bound: BoundPlan, step: Step) -> Action:
    slots = bound.slots
    (body,) = step.bodies
    run_body = _bind_body(bound, body)
    count = step.attrs["count"]
    starts = [operand.slot for operand in step.ins]
    params = [operand.slot for operand in body.params]
    outs = [operand.slot for operand in step.outs]

    def run() -> None:
        carried = [slots[slot] for slot in starts]
        for _ in range(count):
            for slot, value in zip(params, carried, strict=True):
                slots[slot] = value
            value = None
            carried.clear()
            carried = run_body()
        for slot, value in zip(outs, carried, strict=True):
            slots[slot] = value

    return run


def _bind_if(bound: BoundPlan, step: Step) -> Action:
    slots, backend = bound.slots, bound.backend
    condition = step.ins[0].slot
    yes, no = (_bind_body(bound, body) for body in step.bodies)
    outs = [operand.slot for operand in step.outs]

    def run() -> None:
        values = yes() if backend.integer(slots[condition]) else no()
        for slot, value in zip(outs, values, strict=True):
            slots[slot] = value

    return run


def _bind_select(bound: BoundPlan, step: Step) -> Action:
    """A condition that differs by replica: both branches run, each replica takes its own."""
    slots, backend = bound.slots, bound.backend
    condition = step.ins[0].slot
    branches = [_bind_body(bound, body) for body in step.bodies]
    outs = [operand.slot for operand in step.outs]

    def run() -> None:
        chosen = slots[condition]
        values = [run_body() for run_body in branches]
        for slot, yes, no in zip(outs, *values, strict=True):
            slots[slot] = backend.select(chosen, yes, no)

    return run


_BINDERS: dict[str, Callable[[BoundPlan, Step], Action]] = {
    "Mark": _bind_mark,
    "Expand": _bind_expand,
    "HostLoad": _bind_host_load,
    "HostStore": _bind_host_store,
    "RemoteLoad": _bind_remote_load,
    "RemoteStore": _bind_remote_store,
    "RemoteUpdate": _bind_remote_update,
    "ReadState": _bind_read_state,
    "WriteState": _bind_write_state,
    "Loop": _bind_loop,
    "If": _bind_if,
    "Select": _bind_select,
}
