"""Where replicas share weights and meet."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

from modelling.parallel import enter_sharded, leave_sharded, shard_grouping


@pytest.mark.parametrize(
    ("replicas", "r", "assignment"),
    [(2, 2, [0, 1]), (4, 4, [0, 1, 2, 3]), (4, 2, [0, 1, 0, 1]), (8, 4, [0, 1, 2, 3] * 2)],
)
def test_each_of_r_neighbours_has_its_own_shard(replicas: int, r: int, assignment: list[int]):
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        grouping = shard_grouping(r)
    assert list(grouping.assignment) == assignment
    neighbours = [replica // r for replica in range(replicas)]
    assert list(grouping.transpose().assignment) == neighbours


def test_nothing_is_cut_for_one_replica():
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.constant(1.0)
        assert shard_grouping(1) is None
        assert enter_sharded(x, 1) is x
        assert leave_sharded(x, 1) is x


@pytest.mark.parametrize("r", [2, 4])
def test_entering_keeps_values_and_leaving_sums_them(r: int, rng: np.random.Generator):
    ir = popxl.Ir(replication=r)
    with ir.main_graph, popxl.in_sequence():
        source = popxl.h2d_stream((3,), popxl.float32)
        sinks = [popxl.d2h_stream((3,), popxl.float32) for _ in range(2)]
        x = ops.host_load(source)
        ops.host_store(sinks[0], enter_sharded(x, r))
        ops.host_store(sinks[1], leave_sharded(x, r))
    values = rng.integers(-9, 9, (r, 3)).astype(np.float32)
    with popxl.Session(ir, "ipu_hw") as session:
        outputs = session.run({source: values})
    np.testing.assert_array_equal(outputs[sinks[0]], values)
    np.testing.assert_array_equal(outputs[sinks[1]], np.tile(values.sum(axis=0), (r, 1)))
