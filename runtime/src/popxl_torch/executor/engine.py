"""What a session talks to: weights to and from the device, and runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from popxl_torch.backends import make_backend
from popxl_torch.executor.chooser import Chooser
from popxl_torch.executor.file_ranges import MappedFiles
from popxl_torch.executor.host_streams import HostStreams
from popxl_torch.executor.interpreter import Interpreter
from popxl_torch.executor.memory import Memory
from popxl_torch.executor.placement import Placer
from popxl_torch.executor.planner import Planner, Way
from popxl_torch.executor.remote_store import RemoteStore
from popxl_torch.executor.run import BoundPlan
from popxl_torch.executor.slabs import Entry
from popxl_torch.executor.trace import Trace
from popxl_torch.executor.variables import from_replicas, to_device_layout
from popxl_torch.ir.records import Program, Stream, Value
from popxl_torch.passes import ssa
from popxl_torch.passes.mark_uniform import Varying, varying_sources
from popxl_torch.passes.resolve_branches import Path
from popxl_torch.plan.lower import NotVectorisable
from popxl_torch.settings import Settings

_LOG = logging.getLogger("popxl_torch")


class Engine:
    """Runs one program. Plans are made on demand: one for each way that runs take through it, and
    for each pattern of equal replicas."""

    def __init__(self, program: Program, settings: Settings) -> None:
        start = time.perf_counter()
        self.program = program
        self.settings = settings
        self.backend = make_backend(settings, program.replication)
        device = str(getattr(self.backend, "device", "null"))
        self.planner = Planner(program, settings, device)
        outline = self.planner.outline
        self._chooser = Chooser(outline.conditions, outline.streams, program, settings)
        self.trace = Trace(settings.trace, device)
        streams = HostStreams(self.backend, program.num_host_transfers, program.replication)
        remote = RemoteStore(self.backend, outline.stored, self.trace)
        self.memory = Memory(remote, streams, self.trace)
        self.variables = [v for v in program.main.values.values() if v.kind == "variable"]
        self.varying = varying_sources(self.variables)
        self.uploaded: dict[Value, Any] = {}
        self._ways: dict[tuple[str, Path | None], Way] = {}
        self._plans: dict[Any, tuple[BoundPlan, Varying]] = {}
        self._placed = False
        self._files = MappedFiles()
        self._placer = Placer(self.planner, remote, settings, device)
        self._records = settings.cuda_graphs and not self.backend.shares_host
        self._interpreter: Interpreter | None = None
        if settings.executor == "interpreter":
            self._interpreter = Interpreter(program, self.backend, self.memory)
        self._debug(1, f"compiled in {(time.perf_counter() - start) * 1e3:.1f} ms")
        if settings.debug >= 2:
            self._debug(2, f"main:\n{ssa.text(self.planner.functional.main)}")

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
        layouts = {}
        self._files = MappedFiles()
        for value in self.variables:
            data = value.data
            layout = to_device_layout(data, value.spec)
            self._files.add(layout)
            if data.buffer is not None:
                layouts[data.buffer, data.entry] = layout
                tensor = self.backend.remote_view(layout, data.buffer.spec)
                changed |= self.memory.remote.put(data.buffer, data.entry, tensor)
            else:
                tensor = self.backend.from_host(layout, value.spec)
                self.memory.set_state(value, tensor)
            self.uploaded[value] = tensor
            data.retrieved = None
        # A device with memory of its own gets everything anew.
        changed |= not self.backend.shares_host
        if changed:
            self._unbind()
        self.varying.buffers |= self.memory.remote.varying_buffers()
        self._place(layouts, changed)
        self._forget_ready()
        self._execute(self._way("from_host"))

    def _place(self, layouts: dict[Entry, Any], changed: bool) -> None:
        """Read weights from their files where that is asked for; the budget is checked."""
        if self._placer.active and (changed or not self._placed):
            self._placer.place(layouts, self.varying.copy())
        self._placed = True

    def weights_to_host(self) -> None:
        """Fetch every variable that a run has changed into its host array."""
        self._execute(self._way("to_host"))
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
        self._files = MappedFiles()
        if not self.backend.shares_host:
            self._unbind()  # plans hold what is there of the weights
        self._placer.release()
        self._placed = False

    def _unbind(self) -> None:
        for plan, _ in self._plans.values():
            plan.unbind()

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
        are filled in place.

        Raises:
            OSError: a file that is mapped has become shorter.
        """
        self._files.check_sizes()
        self.trace.start()
        self.memory.streams.start(inputs, outputs)
        try:
            path = None if self._interpreter else self._chooser.path(inputs)
            self._execute(self._way("main", path))
        finally:
            self.memory.streams.finish()
        self.backend.synchronise()
        self.trace.finish()

    def _way(self, name: str, path: Path | None = None) -> Way:
        way = self._ways.get((name, path))
        if way is None:
            way = self._ways[name, path] = self.planner.way(name, path)
        return way

    def _execute(self, way: Way) -> None:
        if way.idle:
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
        streams = self.memory.streams.varying(way.touched.streams)
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
        for way in self._ways.values():
            way.ready.clear()

    def _lowered(self, way: Way, streams: frozenset[Stream]) -> tuple[BoundPlan, Varying]:
        """The plan of a way, and what varies after it of what the way touches."""
        touched = way.touched
        states, buffers = (
            self.varying.states & touched.states,
            self.varying.buffers & touched.buffers,
        )
        sources = Varying(set(streams), states, buffers)
        key = (way, streams, *sources.key())
        if key not in self._plans:
            plan, grown = self.planner.plan(way, sources)
            bound = BoundPlan(plan, self.backend, self.memory, self._records)
            if self.settings.debug >= 3:
                self._debug(3, f"plan of {way.name}:\n{plan}\nas a function:\n{bound.bind()}")
            # Marks are a fixed point: what has grown needs no other plan.
            self._plans[key] = self._plans[way, streams, *grown.key()] = (bound, grown)
        return self._plans[key]
