"""Steps between two tests of the machine, and what it allows: the limit.

A machine drifts, and others use its disk as well, so a rate that was taken a minute ago says
little. What the disk gives is measured just before and just behind a few steps in a row, and where
the two differ much, the steps do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import machine
from benchmarks.disk import direct_read_gb_per_s
from benchmarks.engine_memory import Steps
from benchmarks.workers import Worker
from execution.prompts import Prompt

WARM_UP = 1
"""Decode steps behind the prompt: the first one makes the plan."""

RUN_IN = 1
"""Steps behind a pause, in which what is read ahead has arrived: they take less than others."""

REPEATS = 3
"""Samples of a test of memory and arithmetic."""

STEADY = 1.3
"""Steps count if what the disk gave before and behind them differs by no more than this factor."""

TRIES = 2
"""How often as many spans as are wanted are taken until so many are steady."""

DECODING = ("decoder", "lm_head")
"""Phases that a decode step runs."""


@dataclass(frozen=True)
class Frame:
    """What the machine does at a moment."""

    disk_gb_per_s: float
    rates: machine.Rates
    int8_gops: float


@dataclass(frozen=True)
class Span:
    """Steps without a pause, and the machine just before and just behind them."""

    steps: Steps
    before: Frame
    after: Frame

    @property
    def disk_gb_per_s(self) -> float:
        """Of direct reads, the mean; infinite where nothing is read."""
        return mean((self.before.disk_gb_per_s, self.after.disk_gb_per_s))

    @property
    def steady(self) -> bool:
        """Whether the disk gave about as much before as behind."""
        rates = self.before.disk_gb_per_s, self.after.disk_gb_per_s
        return max(rates) <= STEADY * min(rates)

    @property
    def step_s(self) -> float:
        """Seconds of a step, the mean: what is read ahead in one is used in the next."""
        return mean(self.steps.step_s)


@dataclass(frozen=True)
class Measured:
    """All spans of one process."""

    spans: Sequence[Span]

    @cached_property
    def counted(self) -> Sequence[Span]:
        """The steady ones; if there are none, all."""
        return [span for span in self.spans if span.steady] or self.spans

    @property
    def step_s(self) -> list[float]:
        """Of the spans that count."""
        return [s for span in self.counted for s in span.steps.step_s]

    @property
    def peak_anonymous(self) -> int:
        """In bytes."""
        return max(span.steps.peak_anonymous for span in self.spans)

    @property
    def disk_bytes(self) -> float:
        """What a step had read from the disk, as the system says."""
        return median(span.steps.disk_bytes for span in self.counted)

    @property
    def disk_gb_per_s(self) -> float:
        """Of direct reads."""
        return median(span.disk_gb_per_s for span in self.counted)

    @property
    def logits(self) -> str:
        """A digest up to the end of the first span: the others' number varies."""
        return self.spans[0].steps.logits

    @property
    def plan(self) -> dict[str, Any]:
        """See :class:`benchmarks.engine_memory.Steps`."""
        return self.spans[0].steps.plan


def steps_of_turn(spans: int, tokens: int) -> int:
    """Most decode steps of :func:`fresh_turn`."""
    return WARM_UP + TRIES * spans * (RUN_IN + tokens)


def fresh_turn(
    start: Callable[[], Worker], path: Path, prompts: Sequence[Prompt], spans: int, tokens: int
) -> Measured:
    """A turn in a process of its own.

    Args:
        start: Starts it.
        path: The file or folder that it may read from.
        prompts: Of one length.
        spans: To be steady, if they are within twice as many.
        tokens: Steps of each.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))

    def frame() -> Frame:
        # Reading first: what the engine reads ahead for its next step ends meanwhile.
        disk = direct_read_gb_per_s(files) if reads else math.inf
        return Frame(disk, machine.measure_rates(REPEATS), machine.int8_gops(REPEATS))

    found: list[Span] = []
    with start() as worker:
        plan = worker.call("steps", prompts, 0, WARM_UP).plan
        reads = not plan or disk_bytes(plan) > 0
        before = frame()
        while sum(span.steady for span in found) < spans and len(found) < TRIES * spans:
            steps = worker.call("steps", None, tokens, RUN_IN)
            found.append(Span(steps, before, before := frame()))
    return Measured(found)


# -- the limit ------------------------------------------------------------------------------


def streamed_bytes(plan: Mapping[str, Any]) -> int:
    """Bytes of weights that a decode step must read from files."""
    return sum(p["streamed_bytes"] for p in plan["phases"] if p["name"] in DECODING)


def weight_bytes(plan: Mapping[str, Any]) -> int:
    """Bytes of weights that a decode step uses, as they are stored."""
    return sum(p["bytes"] for p in plan["phases"] if p["name"] in DECODING)


def kept_bytes(plan: Mapping[str, Any], where: str) -> int:
    """Bytes of room for keys and values: in "memory", or in a "file" as memory lacks room."""
    rows = [row for row in plan["stored"] if row["name"] in DECODING]
    resident = sum(row["resident_bytes"] for row in rows)
    return resident if where == "memory" else sum(row["bytes"] for row in rows) - resident


def disk_bytes(plan: Mapping[str, Any], filled: float = 1.0) -> float:
    """Bytes that a decode step must read from files: weights, and keys and values without room.

    Args:
        plan: What is kept where.
        filled: Of the positions that there is room for, the share with keys and values.
    """
    return streamed_bytes(plan) + filled * kept_bytes(plan, "file")


def limit_s(span: Span, products: float = 0.0, filled: float = 0.0) -> float:
    """Seconds of a step at the rates of disk, memory and arithmetic around it: the longest of what
    each of them takes.

    Args:
        span: With a plan.
        products: Operations of a step's products. Those of 8 bits, the fastest that the machine
            has, are what bounds them.
        filled: See :func:`disk_bytes`.
    """
    plan, frames = span.steps.plan, (span.before, span.after)
    read = mean(frame.rates.read_gb_per_s for frame in frames)
    kept = kept_bytes(plan, "memory") + kept_bytes(plan, "file")
    return max(
        disk_bytes(plan, filled) / span.disk_gb_per_s / 1e9,
        (weight_bytes(plan) + filled * kept) / read / 1e9,
        products / mean(frame.int8_gops for frame in frames) / 1e9,
    )
