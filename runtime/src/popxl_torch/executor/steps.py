"""What each kind of step does, as a function of its inputs. Everything else is a kernel.

Entries of remote buffers come as ints, or as a list of each replica's where those differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.memory import Memory
from popxl_torch.kernels import kernel_kinds
from popxl_torch.plan.steps import Step

Function = Callable[..., Any]


def bind_step(step: Step, backend: Backend, memory: Memory) -> Function:
    """A function from a step's inputs to its output, its outputs as a tuple, or None."""
    bind = _BINDERS.get(step.kind)
    return backend.bind(step) if bind is None else bind(step, backend, memory)


def _decide(step: Step, backend: Backend, memory: Memory) -> Function:
    return lambda condition: memory.decisions.append(bool(backend.integer(condition)))


def _expand(step: Step, backend: Backend, memory: Memory) -> Function:
    return backend.expand


def _host_load(step: Step, backend: Backend, memory: Memory) -> Function:
    streams, stream, varying = memory.streams, step.attrs["stream"], step.outs[0].varying
    return lambda: streams.load(stream, varying)


def _host_store(step: Step, backend: Backend, memory: Memory) -> Function:
    streams, stream = memory.streams, step.attrs["stream"]
    return lambda tensor: streams.store(stream, tensor)


def _remote_load(step: Step, backend: Backend, memory: Memory) -> Function:
    remote, buffer, varying = memory.remote, step.attrs["buffer"], step.outs[0].varying
    if step.ins[0].varying:
        return lambda entries: remote.load_each(buffer, entries)
    view, reads = "view" in step.attrs, step.attrs.get("reads")
    return lambda entry: remote.load(buffer, entry, varying, view, reads)


def _remote_store(step: Step, backend: Backend, memory: Memory) -> Function:
    remote, buffer = memory.remote, step.attrs["buffer"]
    value, offset = step.ins
    if not offset.varying:
        return lambda tensor, entry: remote.store(buffer, entry, tensor)

    def each(tensor: Any, entries: list[int]) -> None:
        for replica, entry in enumerate(entries):
            part = backend.replica(tensor, replica) if value.varying else tensor
            remote.store_replica(buffer, entry, part, replica)

    return each


def _remote_update(step: Step, backend: Backend, memory: Memory) -> Function:
    remote, buffer, axes = memory.remote, step.attrs["buffer"], step.attrs["axes"]
    varying, reads = step.outs[0].varying, step.attrs.get("reads")

    def run(entry: int, starts: Any, window: Any) -> Any:
        return remote.update(buffer, entry, axes, starts, window, varying, reads)

    return run


def _read_state(step: Step, backend: Backend, memory: Memory) -> Function:
    states, state, (out,) = memory.states, step.attrs["state"], step.outs
    if not out.varying:
        return lambda: states[state]

    def run() -> Any:
        tensor = states[state]
        return tensor if backend.has_lead(tensor, out.spec) else backend.expand(tensor)

    return run


def _write_state(step: Step, backend: Backend, memory: Memory) -> Function:
    state, spec = step.attrs["state"], step.ins[0].spec
    return lambda tensor: memory.set_state(state, backend.stored(tensor, spec))


_BINDERS: dict[str, Callable[[Step, Backend, Memory], Function]] = {
    "Decide": _decide,
    "Expand": _expand,
    "HostLoad": _host_load,
    "HostStore": _host_store,
    "RemoteLoad": _remote_load,
    "RemoteStore": _remote_store,
    "RemoteUpdate": _remote_update,
    "ReadState": _read_state,
    "WriteState": _write_state,
}


def step_kinds() -> frozenset[str]:
    """All kinds of steps: those above, the ones that the emitter writes itself, and kernels."""
    return frozenset({*_BINDERS, "If", "Loop", "Mark", "Select", "Taken", *kernel_kinds()})
