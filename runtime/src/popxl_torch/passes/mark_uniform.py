"""Mark which values may differ between replicas.

All replicas of a program run in one process as one vectorised program: a *uniform* value is
computed once, a *varying* one has a leading replica axis. Marking goes up from the sources (host
inputs, grouped variables, remote buffers) to a fixed point over loops, states and buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from popxl_torch.ir.records import Buffer, Stream, Value, VariableData
from popxl_torch.passes.ssa import Block, Functional, Node, Val, walk

_REPLICA_LOCAL = frozenset({"ReplicatedReduceScatter", "ReplicatedSlice"})
_REDUCING = frozenset({"ReplicatedAllReduce", "ReplicatedAllGather", "MatMulReduced"})


@dataclass(slots=True)
class Varying:
    """What differs between replicas outside the values: the marking's sources and results."""

    streams: set[Stream] = field(default_factory=set)
    states: set[Value] = field(default_factory=set)
    buffers: set[Buffer] = field(default_factory=set)

    def copy(self) -> Varying:
        """Sets of its own with the same members."""
        return Varying(set(self.streams), set(self.states), set(self.buffers))

    def grow(self, other: Varying) -> bool:
        """Add another's states and buffers; returns whether there were new ones."""
        before = len(self.states) + len(self.buffers)
        self.states |= other.states
        self.buffers |= other.buffers
        return len(self.states) + len(self.buffers) > before

    def key(self) -> tuple[frozenset[Value], frozenset[Buffer]]:
        """What lives from run to run, hashable."""
        return frozenset(self.states), frozenset(self.buffers)


def is_grouped(data: VariableData) -> bool:
    """Whether a variable's replicas hold different values."""
    return data.num_groups > 1 or data.shard_over > 1


def varying_sources(variables: Iterable[Value]) -> Varying:
    """The sources that hold before any run: grouped variables."""
    sources = Varying()
    for value in variables:
        if is_grouped(value.data):
            if value.data.buffer is not None:
                sources.buffers.add(value.data.buffer)
            else:
                sources.states.add(value)
    return sources


def mark_uniform(functional: Functional, sources: Varying) -> Varying:
    """Set ``varying`` on every value; returns the sources grown by what runs make varying.

    With one replica nothing varies.
    """
    for block in functional.blocks():
        for node in walk(block):
            for val in [*node.outputs, *(p for inner in node.blocks for p in inner.params)]:
                val.varying = False
    if functional.replicas == 1:
        return sources
    marker = _Marker(functional.replicas, sources)
    while marker.changed:
        marker.changed = False
        for block in functional.blocks():
            marker.mark(block)
    return sources


class _Marker:
    def __init__(self, replicas: int, sources: Varying) -> None:
        self.replicas = replicas
        self.sources = sources
        self.changed = True

    def mark(self, block: Block) -> None:
        for node in block.nodes:
            if node.kind == "Loop":
                self._loop(node)
            elif node.kind in ("If", "Taken"):
                self._if(node)
            elif node.kind == "RemoteStore":
                if any(val.varying for val in node.inputs):
                    self._grow(self.sources.buffers, node.attrs["buffer"])
            elif node.kind == "WriteState":
                if node.inputs[0].varying:
                    self._grow(self.sources.states, node.attrs["state"])
            elif self._differs(node):
                self._set(node.outputs)

    def _grow(self, group: set, member: object) -> None:
        if member not in group:
            group.add(member)
            self.changed = True

    def _set(self, vals: Iterable[Val]) -> None:
        for val in vals:
            if not val.varying:
                val.varying = self.changed = True

    def _differs(self, node: Node) -> bool:
        attrs = node.attrs
        if node.kind == "HostLoad":
            return attrs["stream"] in self.sources.streams
        if node.kind == "ReadState":
            return attrs["state"] in self.sources.states
        inputs_vary = any(val.varying for val in node.inputs)
        if node.kind == "RemoteLoad":
            return inputs_vary or attrs["buffer"] in self.sources.buffers
        if node.kind == "Expand":
            return True
        if node.kind in _REPLICA_LOCAL:
            return inputs_vary or len(attrs["groups"][0]) > 1
        if node.kind in _REDUCING:
            groups = attrs.get("groups")
            return inputs_vary and groups is not None and len(groups) > 1
        return inputs_vary

    def _loop(self, node: Node) -> None:
        (body,) = node.blocks
        for start, param in zip(node.inputs, body.params, strict=True):
            if start.varying:
                self._set([param])
        self.mark(body)
        for param, result, out in zip(body.params, body.results, node.outputs, strict=True):
            if result.varying or param.varying:
                self._set([param, out])

    def _if(self, node: Node) -> None:
        for block in node.blocks:
            self.mark(block)
        for index, out in enumerate(node.outputs):
            results = [block.results[index] for block in node.blocks]
            if any(val.varying for val in (*node.inputs, *results)):
                self._set([out])
