"""What outlives a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from popxl_torch.backends.base import Backend
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Buffer, Spec, Value


@dataclass(slots=True)
class Memory:
    """States of variables, remote buffers, constants; streams, the trace, conditions noted.

    ``moves`` counts how often a state got another memory.
    """

    remote: RemoteStore
    streams: HostStreams
    trace: Trace
    states: dict[Value, Any] = field(default_factory=dict)
    constants: dict[int, Any] = field(default_factory=dict)
    decisions: list[bool] = field(default_factory=list)
    moves: Counter[Value] = field(default_factory=Counter)

    def set_state(self, state: Value, tensor: Any) -> None:
        """Give a variable another tensor."""
        self.states[state] = tensor
        self.moves[state] += 1

    def places(self, states: Collection[Value], buffers: Collection[Buffer]) -> object:
        """Changes when one of these variables or an entry of these buffers gets another memory."""
        remote = self.remote.moves
        return [self.moves[state] for state in states], [remote[buffer] for buffer in buffers]

    def constant(self, array: Any, spec: Spec, backend: Backend) -> Any:
        """A constant's tensor, the same one for all plans. Its array lives as long as the Ir."""
        if id(array) not in self.constants:
            self.constants[id(array)] = backend.from_host(array, spec)
        return self.constants[id(array)]
