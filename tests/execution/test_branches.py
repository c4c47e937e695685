"""Branches of a program chosen by a number."""

from __future__ import annotations

from functools import partial

import numpy as np
import popxl
import pytest
from popxl import ops

from execution.branches import choose


@pytest.mark.parametrize("limits", [(3,), (0, 1), (2, 3, 9), (1, 2, 4, 8, 16)])
def test_the_first_branch_with_room_runs(limits):
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        number = popxl.h2d_stream((), popxl.int32, "number")
        result = popxl.d2h_stream((), popxl.int32, "result")

        def store(limit: int, factor: popxl.Tensor) -> None:
            ops.host_store(result, factor * limit)

        wanted = ops.host_load(number)
        branches = [(limit, partial(store, limit)) for limit in limits]
        choose(wanted, branches, popxl.constant(10, popxl.int32))
    with popxl.Session(ir) as session:
        for value in range(limits[-1] + 1):
            found = session.run({number: np.int32(value)})[result]
            assert found == 10 * next(limit for limit in limits if limit >= value)
