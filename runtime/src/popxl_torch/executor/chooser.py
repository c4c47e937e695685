"""The way that a run takes, found before it: see passes/resolve_branches.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from popxl_torch.backends import make_backend
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.memory import Memory
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.run import BoundPlan
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Program, Stream
from popxl_torch.passes.resolve_branches import Path
from popxl_torch.plan.steps import Plan
from popxl_torch.settings import Settings

_REMEMBERED = 4096
"""Inputs whose way is remembered."""


class Chooser:
    """Computes conditions on the CPU, whatever the run's device; once for equal inputs."""

    def __init__(
        self, plan: Plan, streams: Iterable[Stream], program: Program, settings: Settings
    ) -> None:
        """``plan`` computes the conditions, of ``streams``."""
        self.streams = tuple(streams)
        self._has_transfers = program.num_host_transfers > 1
        settings = replace(settings, device="cpu", backend="torch")
        backend = make_backend(settings, program.replication)
        host = HostStreams(backend, program.num_host_transfers, program.replication)
        trace = Trace("", "cpu")
        self._memory = Memory(RemoteStore(backend, set(), trace), host, trace)
        self._plan = BoundPlan(plan, backend, self._memory)
        self._paths: dict[bytes, Path | None] = {}

    def path(self, inputs: Mapping[Stream, np.ndarray]) -> Path | None:
        """The way of a run; None if replicas may take different ones."""
        arrays = [inputs[stream] for stream in self.streams]
        if self._has_transfers:
            arrays = [array[:1] for array in arrays]
        key = b"".join([array.tobytes() for array in arrays])
        if key not in self._paths:
            if len(self._paths) >= _REMEMBERED:
                self._paths.clear()
            self._paths[key] = self._compute(inputs)
        return self._paths[key]

    def _compute(self, inputs: Mapping[Stream, np.ndarray]) -> Path | None:
        streams, decisions = self._memory.streams, self._memory.decisions
        streams.start({stream: inputs[stream] for stream in self.streams}, {})
        decisions.clear()
        try:
            if streams.varying(self.streams):
                return None
            self._plan.run()
        finally:
            streams.finish()
        return tuple(decisions)
