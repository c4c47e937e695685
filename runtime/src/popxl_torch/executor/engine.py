"""What a session talks to: weights to and from the device, and runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from popxl_torch.backends import make_backend
from popxl_torch.executor.chooser import Chooser
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.interpreter import Interpreter
from popxl_torch.executor.memory import Memory
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.run import BoundPlan
from popxl_torch.executor.trace import Trace
from popxl_torch.executor.variables import from_replicas, to_device_layout
from popxl_torch.ir.records import Buffer, Program, Stream, Value
from popxl_torch.passes import ssa
from popxl_torch.passes.mark_uniform import Varying, varying_sources
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.resolve_branches import Path, find_choices, take
from popxl_torch.passes.ssa import Functional
from popxl_torch.plan.lower import NotVectorisable, lower
from popxl_torch.settings import Settings

_LOG = logging.getLogger("popxl_torch")


@dataclass(eq=False, slots=True)
class Way:
    """What runs as a whole: a fragment of weights' transfer, or a way through the main block.

    Attributes:
        name: of the functional program's block.
        functional: the program; its other blocks are empty.
        streams: input streams that it reads.
        states: variables that it touches.
        buffers: remote buffers that it touches.
        ready: plans by the streams that vary, for what else varies now.
    """

    name: str
    functional: Functional
    streams: set[Stream] = field(default_factory=set)
    states: set[Value] = field(default_factory=set)
    buffers: set[Buffer] = field(default_factory=set)
    ready: dict[frozenset[Stream], BoundPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ssa.walk(getattr(self.functional, self.name)):
            attrs = node.attrs
            if node.kind == "HostLoad":
                self.streams.add(attrs["stream"])
            elif node.kind in ("ReadState", "WriteState"):
                self.states.add(attrs["state"])
            elif node.kind in ("RemoteLoad", "RemoteStore"):
                self.buffers.add(attrs["buffer"])


class Engine:
    """Runs one program. Plans are made on demand: one for each way that runs take through it, and
    for each pattern of equal replicas."""

    def __init__(self, program: Program, settings: Settings) -> None:
        start = time.perf_counter()
        self.program = program
        self.settings = settings
        self.functional = to_functional(program)
        self.backend = make_backend(settings, program.replication)
        device = getattr(self.backend, "device", "null")
        self.trace = Trace(settings.trace, str(device))
        stores = {
            node.attrs["buffer"]
            for block in self.functional.blocks()
            for node in ssa.walk(block)
            if node.kind == "RemoteStore"
        }
        streams = HostStreams(self.backend, program.num_host_transfers, program.replication)
        remote = RemoteStore(self.backend, stores, self.trace)
        self.memory = Memory(remote, streams, self.trace)
        self.variables = [v for v in program.main.values.values() if v.kind == "variable"]
        self.varying = varying_sources(self.variables)
        self.uploaded: dict[Value, Any] = {}
        self._fragments = {
            name: Way(name, self.functional.only(name)) for name in ("from_host", "to_host")
        }
        self._choices = find_choices(self.functional)
        self._chooser = Chooser(self._choices, program, settings)
        # By path; under None the whole main block.
        self._ways: dict[Path | None, Way] = {None: Way("main", self.functional.only("main"))}
        self._plans: dict[Any, tuple[BoundPlan, Varying]] = {}
        self._interpreter: Interpreter | None = None
        if settings.executor == "interpreter":
            self._interpreter = Interpreter(program, self.backend, self.memory)
        self._debug(1, f"compiled in {(time.perf_counter() - start) * 1e3:.1f} ms")
        self._debug(2, f"main:\n{ssa.text(self.functional.main)}")

    def _debug(self, level: int, message: str) -> None:
        if self.settings.debug >= level:
            _LOG.warning("%s", message)

    # -- weights ----------------------------------------------------------------------------

    def weights_from_host(self) -> None:
        """Send every variable to the device: views where host and device are one memory.

        Entries of remote buffers that no variable covers keep what runs stored there.
        """
        self.memory.states.clear()
        self.varying = varying_sources(self.variables)
        changed = False
        for value in self.variables:
            data = value.data
            layout = to_device_layout(data, value.spec)
            if data.buffer is not None:
                tensor = self.backend.remote_view(layout, data.buffer.spec)
                changed |= self.memory.remote.put(data.buffer, data.entry, tensor)
            else:
                tensor = self.memory.states[value] = self.backend.from_host(layout, value.spec)
            self.uploaded[value] = tensor
            data.retrieved = None
        if changed:
            for plan, _ in self._plans.values():
                plan.unbind()
        self.varying.buffers |= self.memory.remote.varying_buffers()
        self._forget_ready()
        self._execute(self._fragments["from_host"])

    def weights_to_host(self) -> None:
        """Fetch every variable that a run has changed into its host array."""
        self._execute(self._fragments["to_host"])
        for value in self.variables:
            data = value.data
            if data.buffer is not None:
                tensor = self.memory.remote.get(data.buffer, data.entry)
                spec = data.buffer.spec
            else:
                tensor = self.memory.states[value]
                spec = value.spec
            # Buffers that are stored to may have been written in place.
            if tensor is not self.uploaded.get(value) or data.buffer in self.memory.remote.stored:
                self._fetch(value, tensor, spec)
                self.uploaded[value] = tensor

    def release(self) -> None:
        """Let go of the variables' tensors. Remote buffers and host values stay."""
        self.memory.states.clear()
        self.uploaded.clear()

    def _fetch(self, value: Value, tensor: Any, spec: Any) -> None:
        data = value.data
        array = self.backend.to_host(tensor, spec)
        if not self.backend.has_lead(tensor, spec):
            array = np.broadcast_to(array, (self.program.replication, *array.shape))
        host = from_replicas(array, data, value.spec)
        if data.memmap is not None:
            data.memmap[...] = host
            data.memmap.flush()
        else:
            data.host = np.array(host)
        if data.all_replicas and data.group_size > 1 and data.shard_over == 1:
            data.retrieved = np.array(array)

    # -- runs -------------------------------------------------------------------------------

    def run(
        self, inputs: Mapping[Stream, np.ndarray], outputs: Mapping[Stream, np.ndarray]
    ) -> None:
        """One execution of the main graph. Arrays have the shapes of ``host_streams``; outputs
        are filled in place."""
        self.trace.start()
        self.memory.streams.start(inputs, outputs)
        try:
            self._execute(self._main_way(inputs))
        finally:
            self.memory.streams.finish()
        self.backend.synchronise()
        self.trace.finish()

    def _main_way(self, inputs: Mapping[Stream, np.ndarray]) -> Way:
        """The way that a run with these inputs takes; all ways at once if it cannot be told."""
        path = None if self._interpreter else self._chooser.path(inputs)
        if path is not None and path not in self._ways:
            self._ways[path] = Way("main", take(self.functional, self._choices, path))
        return self._ways[path]

    def _execute(self, way: Way) -> None:
        if not getattr(way.functional, way.name).nodes:
            return
        with self.backend.running():
            if self._interpreter is None:
                try:
                    self._plan(way).run()
                    return
                except NotVectorisable as reason:
                    _LOG.info("replicas run one by one: %s", reason)
                    self._interpreter = Interpreter(self.program, self.backend, self.memory)
            self._interpreter.run(way.name)

    def _plan(self, way: Way) -> BoundPlan:
        """The plan for what varies now; ``varying`` grows by what running it makes vary."""
        streams = self.memory.streams.varying(way.streams)
        ready = way.ready.get(streams)
        if ready is None:
            ready, grown = self._lowered(way, streams)
            if self.varying.grow(grown):
                self._forget_ready()
            way.ready[streams] = ready
        if way.name == "main":
            self.trace.steps = ready.num_steps
        return ready

    def _forget_ready(self) -> None:
        for way in (*self._fragments.values(), *self._ways.values()):
            way.ready.clear()

    def _lowered(self, way: Way, streams: frozenset[Stream]) -> tuple[BoundPlan, Varying]:
        """The plan of a way, and what varies after it of what the way touches."""
        sources = Varying(set(streams), self.varying.states & way.states,
                          self.varying.buffers & way.buffers)  # fmt: skip
        key = (way, streams, *sources.key())
        if key not in self._plans:
            functional, grown = specialise(
                way.functional, sources, self.settings.join_shards, self.settings.fuse
            )
            plan = lower(functional, getattr(functional, way.name))
            bound = BoundPlan(plan, self.backend, self.memory)
            if self.settings.debug >= 3:
                self._debug(3, f"plan of {way.name}:\n{plan}\nas a function:\n{bound.bind()}")
            # Marks are a fixed point: what has grown needs no other plan.
            self._plans[key] = self._plans[way, streams, *grown.key()] = (bound, grown)
        return self._plans[key]
