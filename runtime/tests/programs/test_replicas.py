"""Replica groupings of every kind, collectives, sharded variables."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

GROUPINGS = [(1, 8), (1, 2), (2, 4), (2, 2), (4, 2), (1, 1), (1, 4), (8, 1)]


def _assignment(stride: int, size: int, replicas: int) -> list[int]:
    return [r % stride + stride * (r // (stride * size)) for r in range(replicas)]


def _members(stride: int, size: int, replicas: int) -> list[list[int]]:
    stride = 1 if size == 1 else stride
    groups: dict[int, list[int]] = {}
    for replica, group in enumerate(_assignment(stride, size, replicas)):
        groups.setdefault(group, []).append(replica)
    return [groups[g] for g in sorted(groups)]


def _results(ir: popxl.Ir, tensors: dict[str, popxl.Tensor], inputs=None) -> dict[str, np.ndarray]:
    with ir.main_graph, popxl.in_sequence():
        streams = {name: popxl.d2h_stream(t.shape, t.dtype) for name, t in tensors.items()}
        for name, t in tensors.items():
            ops.host_store(streams[name], t)
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run(inputs)
    return {name: found[stream] for name, stream in streams.items()}


@pytest.mark.parametrize(("stride", "size"), GROUPINGS)
def test_collectives_over_groups(stride: int, size: int, rng: np.random.Generator) -> None:
    ir = popxl.Ir(replication=8)
    group = ir.replica_grouping(stride=stride, group_size=size)
    x = rng.normal(size=(8, 3, 4)).astype("float32")
    c = ops.collectives
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((3, 4), popxl.float32)
        t = ops.host_load(stream)
        reductions = {
            how: c.replicated_all_reduce(t, how, group) for how in ("add", "mean", "max", "min")
        }
        others = {
            "gather_0": c.replicated_all_gather(t, axis=0, group=group),
            "gather_1": c.replicated_all_gather(t, axis=1, group=group),
            "stacked": c.replicated_all_gather(t, group=group, output_shape="new_axis"),
            "scattered": c.replicated_reduce_scatter(t, group=group),
            "piece": c.replica_sharded_slice(t, group=group),
        }
        others["whole"] = c.replicated_all_gather(others["piece"], group=group)
    got = _results(ir, reductions | others, {stream: x})
    length = -(-12 // size)
    how_numpy = {"add": np.sum, "mean": np.mean, "max": np.max, "min": np.min}
    for members in _members(stride, size, 8):
        part = x[members]
        total = np.zeros(length * size, "float32")
        total[:12] = part.sum(0).reshape(-1)
        for k, replica in enumerate(members):
            own = np.zeros(length * size, "float32")
            own[:12] = x[replica].reshape(-1)
            expected = {name: f(part, axis=0) for name, f in how_numpy.items()} | {
                "gather_0": np.concatenate(part, 0),
                "gather_1": np.concatenate(part, 1),
                "stacked": part,
                "scattered": total[k * length : (k + 1) * length],
                "piece": own[k * length : (k + 1) * length],
            }
            for name, wanted in expected.items():
                np.testing.assert_allclose(
                    got[name][replica], wanted, rtol=1e-5, atol=1e-6, err_msg=name
                )
            assert got["whole"][replica].shape == (3, 4)
            np.testing.assert_array_equal(
                got["whole"][replica].reshape(-1)[:length], x[members[0]].reshape(-1)[:length]
            )


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 2), (1, 2), (1, 1)])
def test_grouped_variables_keep_state(stride: int, size: int, rng: np.random.Generator) -> None:
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping(stride=stride, group_size=size)
    members = _members(stride, size, 4)
    shape = (len(members), 2, 3) if len(members) > 1 else (2, 3)
    start = rng.normal(size=shape).astype("float32")
    with ir.main_graph, popxl.in_sequence():
        w = popxl.variable(start, replica_grouping=group)
        stream = popxl.h2d_stream((2, 3), popxl.float32)
        mean = ops.collectives.replicated_all_reduce(ops.host_load(stream), "mean", group)
        ops.scaled_add_(w, mean, b=-0.5)
    x = rng.normal(size=(4, 2, 3)).astype("float32")
    session = popxl.Session(ir, "ipu_hw")
    for _ in range(2):
        with session:
            session.run({stream: x})
            session.run({stream: x})
    expected = start.reshape(len(members), 2, 3).copy()
    for index, group_members in enumerate(members):
        expected[index] -= 4 * 0.5 * x[group_members].mean(0)
    np.testing.assert_allclose(session.get_tensor_data(w), expected.reshape(shape), rtol=1e-5)


@pytest.mark.parametrize("shard_over", [2, 4])
def test_an_optimiser_step_on_shards(shard_over: int, rng: np.random.Generator) -> None:
    ir = popxl.Ir(replication=4)
    start = rng.normal(size=(3, 5)).astype("float32")
    holders = ir.replica_grouping(stride=1, group_size=shard_over)
    with ir.main_graph, popxl.in_sequence():
        whole, shard = popxl.replica_sharded_variable(start, shard_over=shard_over)
        stream = popxl.h2d_stream((3, 5), popxl.float32)
        full = ops.collectives.replicated_all_gather(shard, group=holders)
        grad = ops.collectives.replicated_all_reduce(ops.host_load(stream) * full, "mean")
        piece = ops.collectives.replica_sharded_slice(grad, group=holders)
        ops.scaled_add_(shard, piece, b=-0.1)
    x = rng.normal(size=(4, 3, 5)).astype("float32")
    session = popxl.Session(ir, "ipu_hw")
    for _ in range(2):
        with session:
            session.run({stream: x})
            session.run({stream: x})
    expected = start.astype("float64")
    for _ in range(4):
        expected = expected - 0.1 * x.mean(0) * expected
    np.testing.assert_allclose(session.get_tensor_data(whole), expected, rtol=1e-5)


def test_transfers_and_replicas_in_a_loop(rng: np.random.Generator) -> None:
    ir = popxl.Ir(replication=2)
    ir.num_host_transfers = 6
    with ir.main_graph, popxl.in_sequence():
        xs = popxl.h2d_stream((3,), popxl.float32)
        ys = popxl.d2h_stream((3,), popxl.float32)
        totals = popxl.d2h_stream((), popxl.float32)

        def pair() -> None:
            first, second = ops.host_load(xs), ops.host_load(xs)
            ops.host_store(ys, first - second)
            ops.host_store(ys, ops.collectives.replicated_all_reduce(second))
            for t in (first, second):
                ops.host_store(totals, ops.sum(t))

        ops.repeat(ir.create_graph(pair), 3)
    x = rng.normal(size=(6, 2, 3)).astype("float32")
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({xs: x})
    expected = np.empty_like(x)
    expected[0::2] = x[0::2] - x[1::2]
    expected[1::2] = x[1::2].sum(1, keepdims=True)
    np.testing.assert_allclose(found[ys], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[totals], x.sum(-1), rtol=1e-5, atol=1e-6)


def test_entries_that_differ_by_replica(rng: np.random.Generator) -> None:
    """Each replica reads and writes entries of its own choice, in a loop."""
    ir = popxl.Ir(replication=3)
    data = rng.normal(size=(4, 3, 2)).astype("float32")
    each = ir.replica_grouping(group_size=1)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
        variables = [
            popxl.remote_variable(data[i], buffer, i, replica_grouping=each) for i in range(4)
        ]
        starts = popxl.h2d_stream((), popxl.int32)

        def step(i: popxl.Tensor):
            ops.remote_store(buffer, i, ops.remote_load(buffer, i) * 2.0)
            return (i + 1) % 4

        i = ops.host_load(starts)
        ops.repeat(ir.create_graph(step, i), 2, i)
    given = np.array([0, 1, 3], "int32")
    session = popxl.Session(ir, "ipu_hw")
    with session:
        session.run({starts: given})
    expected = data.copy()
    for replica, start in enumerate(given):
        for i in (start, (start + 1) % 4):
            expected[i, replica] *= 2
    for i, variable in enumerate(variables):
        np.testing.assert_array_equal(session.get_tensor_data(variable), expected[i])
