"""What is recorded: once, after warm-up, anew when memory has moved; errors end it for good."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from popxl_torch.backends.cuda_graph import WARM_UP, Recorded
from popxl_torch.executor.trace import Trace


class Tape:
    """A graph that replays what the part put on it."""

    def __init__(self) -> None:
        self.actions: list[Callable[[], object]] = []

    def replay(self) -> None:
        for action in self.actions:
            action()


class TapeRecorder:
    """As :class:`popxl_torch.backends.cuda_graph.Recorder`, of parts that call ``act``."""

    def __init__(self) -> None:
        self.works = True
        self.tapes: list[Tape] = []
        self.in_order: list[bool] = []
        self._tape: Tape | None = None

    def act(self, action: Callable[[], object]) -> None:
        """What a kernel is: done at once, or put on the tape."""
        if self._tape is None:
            action()
        else:
            self._tape.actions.append(action)

    def beside(self, part: Any, inputs: Any) -> Any:
        return part(*inputs)

    def record(self, part: Any, inputs: Any, in_order: bool) -> Any:
        self.in_order.append(in_order)
        self._tape = Tape()
        self.tapes.append(self._tape)
        try:
            return self._tape, part(*inputs)
        finally:
            self._tape = None


class Case:
    """y = x + w, where w may move."""

    def __init__(self) -> None:
        self.recorder, self.trace = TapeRecorder(), Trace("trace", "")
        self.weight, self.moves, self.calls = torch.ones(3), 0, 0
        self.recorded = Recorded(self.part, lambda: self.moves, self.trace, self.recorder)  # type: ignore[arg-type]

    def part(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        self.trace.count(12, copied=False)
        y, w = torch.full_like(x, torch.nan), self.weight
        self.recorder.act(lambda: torch.add(x, w, out=y))
        return (y,)

    def check(self, times: int) -> None:
        for number in range(times):
            x = torch.full((3,), float(number))
            torch.testing.assert_close(self.recorded(x)[0], x + self.weight, rtol=0, atol=0)


def test_a_part_is_called_to_warm_up_recorded_and_then_only_replayed() -> None:
    case = Case()
    case.check(10)
    assert case.calls == WARM_UP + 1
    assert len(case.recorder.tapes) == 1
    assert case.trace.current.loaded_bytes == 10 * 12


def test_weights_written_where_they_are_are_seen_by_a_replay() -> None:
    case = Case()
    case.check(5)
    case.weight += 1
    case.check(5)
    assert case.calls == WARM_UP + 1


def test_memory_that_moved_is_recorded_anew_after_a_call() -> None:
    case = Case()
    case.check(5)
    case.weight, case.moves = torch.full((3,), 7.0), 1
    case.check(5)
    assert case.calls == WARM_UP + 1 + 2
    assert len(case.recorder.tapes) == 2


def test_a_part_that_is_recorded_anew_shares_no_memory_with_those_behind_it() -> None:
    case = Case()
    case.check(5)
    case.moves = 1
    case.check(5)
    assert case.recorder.in_order == [True, False]


def test_memory_that_moves_in_every_call_is_never_recorded() -> None:
    case = Case()
    for _ in range(6):
        case.moves += 1
        case.check(1)
    assert case.recorder.tapes == []


def test_an_error_ends_recording_for_all_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case()
    monkeypatch.setattr(TapeRecorder, "record", _refuse)
    with caplog.at_level(logging.WARNING, "popxl_torch"):
        case.check(6)
    assert case.calls == 6


def _refuse(recorder: TapeRecorder, part: Any, inputs: Any, in_order: bool) -> None:
    assert recorder.works, "asked again"
    recorder.works = False
