"""The grammar of a program: five records.

    Program  = main Graph, sub-graphs, remote buffers, streams, session options
    Graph    = inputs, ops in creation order, outputs
    Op       = kind, input Values (None where unconnected), attributes, sub-graphs, output Values
    Value    = id, Spec, and where it comes from: an op, a graph input, a variable or a constant
    Spec     = shape, dtype name, meta shape

What a PopXL program builds is kept one to one. Creation order is the order of execution: it refines
every order that PopXL guarantees. Passes work on copies (see ``passes``), never on these records.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape, dtype name and, for shards, the shape of the unsharded tensor."""

    shape: tuple[int, ...]
    dtype: str
    meta_shape: tuple[int, ...] = ()

    @property
    def nelms(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


@dataclass(eq=False, slots=True)
class Value:
    """A tensor of one graph. ``data`` is the host array of a constant or the VariableData."""

    id: str
    spec: Spec
    graph: Graph
    kind: str  # "op", "input", "variable", "constant", or "stream" (a name only)
    producer: Op | None = None
    data: Any = None
    by_ref: bool = False
    ipu: int | None = None
    tile_set: str | None = None

    @property
    def name(self) -> str:
        """The id without the graph's scope."""
        prefix = self.graph.id + "/"
        return self.id[len(prefix) :] if self.graph.id and self.id.startswith(prefix) else self.id

    def __repr__(self) -> str:
        return f"{self.id}:{self.spec.dtype}{list(self.spec.shape)}"


@dataclass(eq=False, slots=True)
class Op:
    """One operation. ``scopes`` are its name scopes, ``location`` the user's line.

    ``hints`` are settings for IPUs that programs set and read; nothing here depends on them.
    """

    opid: int
    kind: str
    graph: Graph
    inputs: list[Value | None]
    outputs: list[Value]
    attrs: dict[str, Any]
    graphs: tuple[Graph, ...] = ()
    name: str = ""
    scopes: tuple[str, ...] = ()
    location: str = ""
    ipu: int = 0
    tile_set: str = "compute"
    context: str = "Normal"  # popxl.ExecutionContext's member name
    hints: dict[str, Any] = field(default_factory=dict)

    def where(self) -> str:
        """One line for error messages: op, graph and creation line."""
        graph = self.graph.id or "main graph"
        return f"op {self.kind} ({self.name}) in {graph}, built at {self.location}"


@dataclass(eq=False, slots=True)
class Graph:
    """A graph. Ops run in list order; ``values`` holds every tensor by id.

    ``befores`` are the ops that the program orders before an op, besides those whose results it
    uses. The list refines them; they tell what the program left open.
    """

    id: str
    program: Program
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    recursive_autodiff: bool = True
    befores: dict[Op, set[Op]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Graph({self.id!r})"


@dataclass(eq=False, slots=True)
class Buffer:
    """A remote buffer: ``entries`` tensors of ``spec`` on each replica."""

    id: int
    spec: Spec
    entries: int


@dataclass(eq=False, slots=True)
class Stream:
    """A host stream of ``spec`` per replica and transfer. ``to_device`` tells its direction."""

    id: str
    spec: Spec
    to_device: bool


@dataclass(eq=False, slots=True)
class VariableData:
    """Host side of a variable.

    ``host`` is the array in host shape ((groups, \\*shape) when there are several replica groups).
    ``assignment`` maps replica to group, in the order of the host array's leading axis.
    ``buffer`` and ``entry`` are set for remote variables; ``shards`` > 1 for replica-sharded ones.
    """

    host: Any
    assignment: tuple[int, ...]
    num_groups: int
    buffer: Buffer | None = None
    entry: int = 0
    shard_over: int = 1
    group_size: int = 1
    ranks: tuple[int, ...] = ()
    all_replicas: bool = False
    memmap: Any = None
    retrieved: Any = None  # all replicas' values at the last fetch, for that retrieval mode


@dataclass(eq=False, slots=True)
class Program:
    """Everything that one ``popxl.Ir`` holds."""

    id: int
    replication: int = 1
    num_host_transfers: int = 1
    graphs: dict[str, Graph] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    options: Any = None
    prepared: bool = False
    owner: Any = None  # a weak reference to the popxl.Ir that wraps this program
    op_ids: Any = field(default_factory=lambda: itertools.count(100))
    tensor_ids: Any = field(default_factory=itertools.count)
    graph_ids: Any = field(default_factory=itertools.count)

    @property
    def frontend(self) -> Any:
        """The ``popxl.Ir`` that wraps this program; RuntimeError if nothing keeps it any more."""
        found = None if self.owner is None else self.owner()
        if found is None:
            raise RuntimeError(
                f"Ir[id={self.id}] is gone: keep a reference to an Ir for as long as its tensors"
                " are used."
            )
        return found

    @property
    def main(self) -> Graph:
        """The main graph, whose id is the empty string."""
        return self.graphs[""]
