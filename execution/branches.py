"""One of several parts of a program, chosen by a number that the host gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import popxl
from popxl import ops

Branches = Sequence[tuple[int, Callable[..., None]]]


def choose(number: popxl.Tensor, branches: Branches, *inputs: popxl.Tensor) -> None:
    """Runs the first branch whose limit is not below a number, found by halving.

    Args:
        number: () int32, at most the last limit.
        branches: Limits in ascending order, each with what builds the branch from the inputs.
            Branches have effects, such as stores, and no results.
        inputs: What the branch is given.
    """
    if len(branches) == 1:
        branches[0][1](*inputs)
        return
    half = len(branches) // 2
    low, high = branches[:half], branches[half:]
    above = ops.greater(number, popxl.constant(low[-1][0], popxl.int32, "limit"))
    given = (number, *inputs)
    ops.conditional(above, _graph(high, *given), _graph(low, *given), given, given)


def _graph(branches: Branches, *given: popxl.Tensor) -> popxl.Graph:
    def build(number: popxl.Tensor, *inputs: popxl.Tensor) -> None:
        choose(number, branches, *inputs)

    return popxl.gcg().ir.create_graph(build, *given)
