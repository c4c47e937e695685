"""Gradients of random programs of calls, conditionals and element-wise ops against torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import popxl
import pytest
import torch
from popxl import ops

from runtime.tests.popxl.transforms.grad_testing import check_gradients

RTOL = 1e-7  # sums of many terms cancel

LEAVES = ("tanh", "sin", "mul", "add", "exp", "centre", "detach")
KINDS = (*LEAVES, "call", "conditional")


@dataclass(frozen=True)
class Step:
    """A kind applied to two earlier values; ``bodies`` are the programs of called graphs."""

    kind: str
    first: int
    second: int
    bodies: tuple[tuple[Step, ...], ...]
    flag: bool


def random_program(rng: np.random.Generator, depth: int = 2) -> tuple[Step, ...]:
    steps = []
    for _ in range(rng.integers(2, 6)):
        kind = str(rng.choice(KINDS if depth else LEAVES))
        count = {"call": 1, "conditional": 2}.get(kind, 0)
        bodies = tuple(random_program(rng, depth - 1) for _ in range(count))
        first, second = (int(i) for i in rng.integers(0, 100, size=2))
        steps.append(Step(kind, first, second, bodies, bool(rng.integers(0, 2))))
    return tuple(steps)


class WithPopxl:
    """The steps as ops of the current graph."""

    tanh, sin, exp, detach = ops.tanh, ops.sin, ops.exp, ops.detach

    @staticmethod
    def mean(x: popxl.Tensor) -> popxl.Tensor:
        return ops.mean(x, 0, True)

    @classmethod
    def call(cls, step: Step, x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        (body,) = step.bodies
        graph = popxl.gir().create_graph(lambda p, q: evaluate(body, [p, q], cls), x, y)
        (r,) = ops.call(graph, x, y)
        return r + ops.call(graph, y, r)[0]

    @classmethod
    def conditional(cls, step: Step, x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        then, other = step.bodies
        left = popxl.gir().create_graph(lambda p, q: evaluate(then, [p, q], cls), x, y)
        right = popxl.gir().create_graph(lambda p: evaluate(other, [p, p], cls), x)
        flag = popxl.constant(step.flag, popxl.bool)
        return ops.conditional(flag, left, right, [x, y], [x])[0]


class WithTorch:
    """The same in torch."""

    tanh, sin, exp, detach = torch.tanh, torch.sin, torch.exp, torch.Tensor.detach

    @staticmethod
    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean(0, True)

    @classmethod
    def call(cls, step: Step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        (body,) = step.bodies
        r = evaluate(body, [x, y], cls)
        return r + evaluate(body, [y, r], cls)

    @classmethod
    def conditional(cls, step: Step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        then, other = step.bodies
        return evaluate(then, [x, y], cls) if step.flag else evaluate(other, [x, x], cls)


RULES: dict[str, Any] = {
    "tanh": lambda lib, step, x, y: lib.tanh(x),
    "sin": lambda lib, step, x, y: lib.sin(x),
    "exp": lambda lib, step, x, y: lib.exp(lib.tanh(x)),
    "mul": lambda lib, step, x, y: x * y,
    "add": lambda lib, step, x, y: x + y,
    "centre": lambda lib, step, x, y: x - lib.mean(x),
    "detach": lambda lib, step, x, y: lib.detach(x) * y,
    "call": lambda lib, step, x, y: lib.call(step, x, y),
    "conditional": lambda lib, step, x, y: lib.conditional(step, x, y),
}


def evaluate(program: tuple[Step, ...], inputs: list, lib: type) -> Any:
    values = list(inputs)
    for step in program:
        x, y = (values[index % len(values)] for index in (step.first, step.second))
        values.append(RULES[step.kind](lib, step, x, y))
    return values[-1] + values[0] * 0.5 + values[1] * 0.25


@pytest.mark.parametrize("seed", range(16))
def test_random_programs(seed: int):
    rng = np.random.default_rng(seed)
    program = random_program(rng)
    check_gradients(
        lambda x, y: evaluate(program, [x, y], WithPopxl),
        lambda x, y: evaluate(program, [x, y], WithTorch),
        rng.normal(size=(3, 2)),
        rng.normal(size=(3, 2)),
        rtol=RTOL,
        atol=RTOL / 100,
    )
