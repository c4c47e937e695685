"""All-reduces of tensor-parallel layers, and strided collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops
from popxl_addons import NamedTensors
from popxl_addons.ops import replicated_all_reduce_TP as tp
from popxl_addons.ops import replicated_strided_collectives as strided
from popxl_addons.ops.linear_layout import linear_layout

SUMS = (tp.replicated_all_reduce, tp.replicated_all_reduce_identical_grad_inputs)
GROUPS = [(1, 4), (1, 2), (2, 2), (1, 1)]


def members(group: popxl.ReplicaGrouping) -> list[list[int]]:
    """The replicas in the group of each replica."""
    return [[s for s, h in enumerate(group.assignment) if h == g] for g in group.assignment]


def loaded(x: np.ndarray) -> tuple[popxl.HostToDeviceStream, popxl.Tensor]:
    stream = popxl.h2d_stream(x.shape[1:], popxl.dtype.as_dtype(x))
    return stream, ops.host_load(stream)


@pytest.mark.parametrize("group", GROUPS)
def test_sum_forwards(group: tuple, ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.integers(-9, 9, size=(4, 2, 3)).astype("float32")
    rg = ir4.replica_grouping(*group)
    stream, t = loaded(x)
    outputs = run([reduce(t, group=rg) for reduce in SUMS], {stream: x})
    expected = np.stack([x[m].sum(0) for m in members(rg)])
    for result in outputs:
        np.testing.assert_array_equal(result, expected)


def test_identity_forwards(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = np.repeat(rng.normal(size=(1, 2, 3)).astype("float32"), 4, axis=0)
    stream, t = loaded(x)
    outputs = [
        tp.replicated_all_reduce_identical_inputs(t),
        strided.replicated_all_reduce_strided_identical_inputs(t, "mean"),
        linear_layout(t, bs=2),
    ]
    assert len(set(outputs) | {t}) == 4
    for result in run(outputs, {stream: x}):
        np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("reduce", [*SUMS, tp.replicated_all_reduce_identical_inputs])
def test_only_sums(reduce: Callable[..., Any], ir4: popxl.Ir):
    t = popxl.constant(np.zeros(2, "float32"))
    with pytest.raises(popart.popart_exception, match="is a sum"):
        reduce(t, "mean")
    with pytest.raises(ValueError, match="Not a valid op"):
        reduce(t, "plus")
    with pytest.raises(NotImplementedError):
        reduce(t, group=ir4.replica_grouping_from_assignments([0, 1, 1, 0]))


@pytest.mark.parametrize("op", ["add", "mean"])
def test_strided_collectives(op: str, ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.integers(-9, 9, size=(4, 3)).astype("float32")
    rg = ir4.replica_grouping(stride=2, group_size=2)
    stream, t = loaded(x)
    reduced, scattered, gathered = run(
        [
            strided.replicated_all_reduce_strided(t, op, rg),  # type: ignore[arg-type]
            strided.replicated_reduce_scatter_strided(t, op, rg),  # type: ignore[arg-type]
            strided.replicated_all_gather_strided(t, rg),
        ],
        {stream: x},
    )
    for replica, group in enumerate(members(rg)):
        total = x[group].sum(0) if op == "add" else x[group].mean(0)
        np.testing.assert_array_equal(reduced[replica], total)
        rank = group.index(replica)
        np.testing.assert_array_equal(scattered[replica], np.pad(total, (0, 1))[2 * rank :][:2])
        np.testing.assert_array_equal(gathered[replica], x[group].ravel())


def test_strided_collectives_of_shards(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.integers(-9, 9, size=(4, 2, 4)).astype("float32")
    stream, t = loaded(x)
    shard = strided.replicated_reduce_scatter_strided(
        t, configure_output_for_replicated_tensor_sharding=True
    )
    assert (shard.shape, shard.meta_shape) == ((2,), (2, 4))
    (whole,) = run([strided.replicated_all_gather_strided(shard)], {stream: x})
    np.testing.assert_array_equal(whole, np.broadcast_to(x.sum(0), x.shape))


def test_strided_collectives_reject_other_ops(ir4: popxl.Ir):
    t = popxl.constant(np.zeros(4, "float32"))
    for collective in (
        strided.replicated_all_reduce_strided,
        strided.replicated_all_reduce_strided_identical_inputs,
        strided.replicated_reduce_scatter_strided,
    ):
        with pytest.raises(popart.popart_exception):
            collective(t, "max")  # type: ignore[operator]


def test_strided_graph(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.integers(-9, 9, size=(4, 3)).astype("float32")
    stream, t = loaded(x)
    tensors = NamedTensors.from_dict({"b": t, "a.c": t})
    graph, names = strided.replicated_all_reduce_strided_graph(tensors)
    assert names == ["a.c", "b"]
    for result in run(list(graph.bind(tensors).call()), {stream: x}):
        np.testing.assert_array_equal(result, np.broadcast_to(x.sum(0), x.shape))
