"""From a program to its plans: one for each way that runs take and each pattern of equal replicas.

Everything is made on demand and kept by content (see executor/plan_cache.py), so a session of a
program that is known runs no pass at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from popxl_torch.executor.plan_cache import PlanCache
from popxl_torch.executor.run import BoundPlan
from popxl_torch.executor.steps import step_kinds
from popxl_torch.ir.records import Buffer, Program, Stream
from popxl_torch.passes import ssa
from popxl_torch.passes.find_slabs import LoadedTogether, find_slabs, find_stored
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.resolve_branches import Choices, Path, find_choices, take
from popxl_torch.passes.ssa import Functional
from popxl_torch.plan.lower import NotVectorisable, lower
from popxl_torch.plan.memory import peak_bytes
from popxl_torch.plan.portable import Portable
from popxl_torch.plan.steps import Plan
from popxl_torch.settings import Settings


@dataclass(eq=False, slots=True)
class Way:
    """What runs as a whole: a fragment of weights' transfer, or a way through the main block.

    Attributes:
        name: of the functional program's block.
        path: of the main block; None for all of it.
        idle: whether there is nothing to do.
        touched: input streams, variables and remote buffers that it reads or writes.
        ready: plans by the streams that vary, for what else varies now.
    """

    name: str
    path: Path | None
    idle: bool
    touched: Varying
    ready: dict[frozenset[Stream], BoundPlan] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a session must know before its first run.

    Attributes:
        stored: remote buffers that some op stores to.
        conditions: the plan that computes the settled conditions.
        streams: what they are computed of.
    """

    stored: frozenset[Buffer]
    conditions: Plan
    streams: tuple[Stream, ...]


class Planner:
    """Makes the plans of one program."""

    def __init__(self, program: Program, settings: Settings, device: str) -> None:
        self.program = program
        self.settings = settings
        self._cache = PlanCache(program, settings, device)
        self._portable = Portable(program)
        self.outline = self._cache.get(
            ("outline",), self._build_outline, self._dump_outline, self._load_outline
        )

    @functools.cached_property
    def functional(self) -> Functional:
        """The program after the passes that all plans share."""
        return to_functional(self.program)

    @functools.cached_property
    def _choices(self) -> Choices:
        return find_choices(self.functional)

    def way(self, name: str, path: Path | None = None) -> Way:
        """A fragment, or a way through the main block."""

        def build() -> Way:
            block = getattr(self._part(name, path), name)
            return Way(name, path, not block.nodes, _touched(block))

        def dump(way: Way) -> Any:
            return [way.idle, self._dump_varying(way.touched)]

        def load(content: Any) -> Way:
            idle, touched = content
            return Way(name, path, bool(idle), self._load_varying(touched))

        return self._cache.get(("way", name, path), build, dump, load)

    def plan(self, way: Way, sources: Varying) -> tuple[Plan, Varying]:
        """The plan of a way where ``sources`` differ by replica, and the sources grown by what
        running it makes vary.

        Raises:
            NotVectorisable: replicas must run one by one.
        """

        def build() -> tuple[Plan, Varying]:
            part = self._part(way.name, way.path)
            join, fuse = self.settings.join_shards, self.settings.fuse
            functional, grown = specialise(part, sources, join, fuse)
            return lower(functional, getattr(functional, way.name)), grown

        def dump(made: tuple[Plan, Varying]) -> Any:
            return [self._portable.dump(made[0]), self._dump_varying(made[1])]

        def load(content: Any) -> tuple[Plan, Varying]:
            return self._portable.load(content[0], step_kinds()), self._load_varying(content[1])

        what = ("plan", way.name, way.path, self._dump_varying(sources))
        return self._cache.get(what, build, dump, load)

    def slabs(self) -> list[LoadedTogether]:
        """What the main block loads together."""
        return self._groups("slabs", lambda: find_slabs(self.functional))

    def stored(self) -> list[LoadedTogether]:
        """What the main block stores to together."""
        return self._groups("stored", lambda: find_stored(self.functional))

    def _groups(self, what: str, build: Callable[[], list[LoadedTogether]]) -> list[LoadedTogether]:
        def dump(groups: list[LoadedTogether]) -> Any:
            return [
                [g.phase, list(map(self._portable.refer, g.buffers)), g.places, g.gathered]
                for g in groups
            ]

        def load(content: Any) -> list[LoadedTogether]:
            return [
                LoadedTogether(
                    str(phase), tuple(map(self._portable.buffer, buffers)), int(places), bool(rows)
                )
                for phase, buffers, places, rows in content
            ]

        return self._cache.get((what,), build, dump, load)

    def activation_bytes(
        self, sources: Varying, shares_host: bool = True, all_stay: bool = True
    ) -> int:
        """Most bytes of intermediate values in a run of the main block, whatever way it takes; the
        other arguments are those of :func:`popxl_torch.plan.memory.peak_bytes`."""

        def build() -> int:
            join, fuse = self.settings.join_shards, self.settings.fuse
            try:
                functional, _ = specialise(self.functional.only("main"), sources, join, fuse)
                plan = lower(functional, functional.main)
            except NotVectorisable:  # replicas run one by one
                functional, _ = specialise(self.functional.only("main"), Varying(), join, fuse)
                plan = lower(functional, functional.main)
            wide = self.settings.arithmetic == "fast"
            return peak_bytes(plan, wide, shares_host, all_stay)

        what = ("activations", self._dump_varying(sources), shares_host, all_stay)
        return self._cache.get(what, build, int, int)

    def _part(self, name: str, path: Path | None) -> Functional:
        if path is None:
            return self.functional.only(name)
        return take(self.functional, self._choices, path)

    # -- records ----------------------------------------------------------------------------

    def _build_outline(self) -> Outline:
        stored = {
            node.attrs["buffer"]
            for block in self.functional.blocks()
            for node in ssa.walk(block)
            if node.kind == "RemoteStore"
        }
        program = self._choices.program
        conditions = lower(program, program.main)
        return Outline(frozenset(stored), conditions, self._choices.streams)

    def _dump_outline(self, outline: Outline) -> Any:
        stored, streams = self._refer(outline.stored), self._refer(outline.streams)
        return [stored, self._portable.dump(outline.conditions), streams]

    def _load_outline(self, content: Any) -> Outline:
        stored, conditions, streams = content
        return Outline(
            frozenset(map(self._portable.buffer, stored)),
            self._portable.load(conditions, step_kinds()),
            tuple(map(self._portable.stream, streams)),
        )

    def _refer(self, things: Iterable[Any]) -> list[Any]:
        return sorted(map(self._portable.refer, things))

    def _dump_varying(self, varying: Varying) -> list[list[Any]]:
        parts: tuple[set[Any], ...] = (varying.streams, varying.states, varying.buffers)
        return [self._refer(part) for part in parts]

    def _load_varying(self, content: Any) -> Varying:
        streams, states, buffers = content
        portable = self._portable
        return Varying(
            set(map(portable.stream, streams)),
            set(map(portable.state, states)),
            set(map(portable.buffer, buffers)),
        )


def _touched(block: ssa.Block) -> Varying:
    touched = Varying()
    for node in ssa.walk(block):
        if node.kind == "HostLoad":
            touched.streams.add(node.attrs["stream"])
        elif node.kind in ("ReadState", "WriteState"):
            touched.states.add(node.attrs["state"])
        elif node.kind in ("RemoteLoad", "RemoteStore"):
            touched.buffers.add(node.attrs["buffer"])
    return touched
