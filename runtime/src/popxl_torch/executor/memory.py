"""What outlives a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Spec, Value


@dataclass(slots=True)
class Memory:
    """States of variables, remote buffers, constants; streams, the trace, conditions noted."""

    remote: RemoteStore
    streams: HostStreams
    trace: Trace
    states: dict[Value, Any] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)
    decisions: list[bool] = field(default_factory=list)

    def constant(self, array: Any, spec: Spec, backend: Backend) -> Any:
        """A constant's tensor, the same one for all plans. Its array lives as long as the Ir."""
        if id(array) not in self.constants:
            self.constants[id(array)] = backend.from_host(array, spec)
        return self.constants[id(array)]
