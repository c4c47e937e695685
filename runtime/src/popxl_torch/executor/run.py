"""A plan bound to a backend: a function that is made when it is first needed, then called.

Errors keep their type and get a note naming op, graph and the user's line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from popxl_torch.backends.base import Backend
from popxl_torch.executor.emit import Emitter
from popxl_torch.executor.memory import Memory
from popxl_torch.kernels import host_kinds
from popxl_torch.plan.recording import Device, record_parts
from popxl_torch.plan.steps import Plan

_LOG = logging.getLogger("popxl_torch")
_FILE = "<plan>"


class BoundPlan:
    """A plan that can be run any number of times."""

    def __init__(self, plan: Plan, backend: Backend, memory: Memory, records: bool = False) -> None:
        """``records``: whether parts of it that need nothing of the host are recorded."""
        self.plan = plan
        self.records = records
        self.backend = backend
        self.memory = memory
        self.num_steps = sum(1 for _ in plan.steps())
        self._run: Callable[[], object] | None = None
        self._notes: list[str] = []

    def run(self) -> None:
        """Execute the steps. Nothing but constants is kept afterwards."""
        if self._run is None:
            self.bind()
        assert self._run is not None
        try:
            self._run()
        except Exception as error:
            if not getattr(error, "__notes__", None):
                error.add_note(f"while executing {self._notes[_failed_line(error) - 1]}")
            raise

    def bind(self) -> str:
        """Make the function; returns its source."""
        emitter = Emitter(self._with_parts(), self.backend, self.memory)
        exec(compile(emitter.source, _FILE, "exec"), emitter.names)
        self._run, self._notes = emitter.names["run"], emitter.notes
        return emitter.source

    def _with_parts(self) -> Plan:
        if not self.records:
            return self.plan
        remote, traced = self.memory.remote, self.memory.trace.active
        device = Device(remote.is_fixed, remote.stays, host_kinds(), traced)
        plan, reasons = record_parts(self.plan, device)
        for reason in reasons:
            _LOG.debug("not recorded: %s", reason)
        return plan

    def unbind(self) -> None:
        """Forget the function: the weights that it knows have changed."""
        self._run = None


def _failed_line(error: BaseException) -> int:
    """The innermost line of a plan in an error's traceback, counted from 1."""
    line, frame = 1, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == _FILE:
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
