"""Engines take turns, A B C A B C, and each turn is framed by tests of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks import machine

REPEATS = 3
"""Samples of a test of the machine."""


@dataclass(frozen=True)
class Turn:
    """What one engine did in one round, and what the machine could do around it."""

    value: Any
    before: machine.Rates
    after: machine.Rates

    @property
    def read_gb_per_s(self) -> float:
        """Bytes that the machine reads a second, in 1e9: the mean of before and after."""
        return (self.before.read_gb_per_s + self.after.read_gb_per_s) / 2


@dataclass
class Turns:
    """All turns by engine, in order of rounds, and all rates in order of time.

    ``in_turn`` is False if each engine did all of its rounds before the next one began.
    """

    of: dict[str, list[Turn]] = field(default_factory=dict)
    rates: list[machine.Rates] = field(default_factory=list)
    in_turn: bool = True

    def values(self, name: str, what: Callable[[Any], float]) -> list[float]:
        """A number out of each turn of an engine."""
        return [what(turn.value) for turn in self.of[name]]

    def frame(self) -> list[machine.Rates]:
        """The first and the last rates."""
        return [self.rates[0], self.rates[-1]]

    def rate_samples(self) -> dict[str, list[float]]:
        """All rates, for keeping."""
        return {
            "machine_read_gb_per_s": [rate.read_gb_per_s for rate in self.rates],
            "machine_matmul_gflops": [rate.matmul_gflops for rate in self.rates],
        }


def take_turns(actions: Mapping[str, Callable[[], Any]], rounds: int) -> Turns:
    """Calls every action once a round, with a test of the machine between any two.

    Args:
        actions: By name of the engine.
        rounds: How often.
    """
    turns = Turns({name: [] for name in actions}, [machine.measure_rates(REPEATS)])
    for _ in range(rounds):
        for name, action in actions.items():
            value = action()
            turns.rates.append(machine.measure_rates(REPEATS))
            turns.of[name].append(Turn(value, *turns.rates[-2:]))
    return turns


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(above, below, strict=True))
