"""Shards of tensors over replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import (
    NamedTensors,
    NamedVariableFactories,
    VariableFactory,
    load_remote_graph,
    named_variable_buffers,
)
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.rts import (
    all_gather_replica_sharded_graph,
    gather_replica_sharded_tensor,
    reduce_replica_sharded_graph,
    reduce_replica_sharded_tensor,
    replica_sharded_spec,
)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """(4 replicas, 2, 4)"""
    return rng.integers(-99, 99, size=(4, 2, 4)).astype("float32")


@pytest.fixture
def stream(ir4: popxl.Ir) -> popxl.HostToDeviceStream:
    return popxl.h2d_stream((2, 4), popxl.float32)


@pytest.fixture
def t(stream: popxl.HostToDeviceStream) -> popxl.Tensor:
    return ops.host_load(stream)


def test_specs(ir4: popxl.Ir, t: popxl.Tensor):
    everyone = ir4.replica_grouping()
    assert replica_sharded_spec(t, everyone) == popxl.TensorSpec((2,), popxl.float32, (2, 4))
    assert replica_sharded_spec(t, ir4.replica_grouping(group_size=1)) == t.spec
    odd = popxl.variable(np.zeros(3, "float32"))
    assert replica_sharded_spec(odd, everyone) == odd.spec
    shard = ops.collectives.replica_sharded_slice(t)
    assert replica_sharded_spec(shard, everyone) == shard.spec


def test_gather(t: popxl.Tensor, stream: Any, x: np.ndarray, run: Any):
    same = ops.collectives.replicated_all_reduce(t)
    shard = ops.collectives.replica_sharded_slice(same)
    assert gather_replica_sharded_tensor(t) is t
    (whole,) = run([gather_replica_sharded_tensor(shard)], {stream: x})
    np.testing.assert_array_equal(whole, np.broadcast_to(x.sum(0), x.shape))


@pytest.mark.parametrize(
    ("reduce_size", "shard_size"), [(4, None), (2, 2), (4, 2), (1, 4), (1, 1), (4, 1), (2, 4)]
)
@pytest.mark.parametrize("op", ["add", "mean"])
def test_reduce(op: Any, reduce_size: int, shard_size: int | None, ir4: popxl.Ir, t: Any,
                stream: Any, x: np.ndarray, run: Any):  # fmt: skip
    reduce_group = ir4.replica_grouping(group_size=reduce_size)
    shard_group = None if shard_size is None else ir4.replica_grouping(group_size=shard_size)
    shards = shard_size or reduce_size
    y = reduce_replica_sharded_tensor(t, op, reduce_group, shard_group)
    if shards == 1:
        assert y.spec == t.spec
    else:
        assert (y.shape, y.meta_shape) == ((8 // shards,), (2, 4))
    (result,) = run([y], {stream: x})
    reduced = getattr(np, {"add": "sum", "mean": "mean"}[op])(
        x.reshape(-1, reduce_size, 2, 4), axis=1
    )
    for replica in range(4):
        whole = reduced[replica // reduce_size].ravel()
        expected = np.split(whole, shards)[replica % shards]
        np.testing.assert_array_equal(result[replica].ravel(), expected)


def test_graphs_reduce_and_gather(ir4: popxl.Ir, t: Any, stream: Any, x: np.ndarray, run: Any):
    tensors = NamedTensors.from_dict({"w": t, "a.b": t, "a.c": t + t})
    groups = NamedReplicaGrouping.from_dict({"a.b": ir4.replica_grouping(group_size=1)})
    reduce_graph, names = reduce_replica_sharded_graph(tensors, "mean", shard_groups=groups)
    assert names == ["a.b", "a.c", "w"]
    reduced = NamedTensors.pack(names, reduce_graph.bind(tensors).call())
    assert (reduced.a.b.shape, reduced.w.shape, reduced.w.meta_shape) == ((2, 4), (2,), (2, 4))
    everyone = NamedReplicaGrouping.build_groups(names, ir4.replica_grouping())
    gather_graph, names = all_gather_replica_sharded_graph(reduced, replica_groups=everyone)
    gathered = NamedTensors.pack(names, gather_graph.bind(reduced).call())
    results = run([gathered.w, gathered.a.b, gathered.a.c], {stream: x})
    mean = np.broadcast_to(x.mean(0), x.shape)
    for result, expected in zip(results, [mean, mean, 2 * mean], strict=True):
        np.testing.assert_array_equal(result, expected)


def test_gather_needs_a_group_for_every_key(ir4: popxl.Ir, t: popxl.Tensor):
    with pytest.raises(KeyError):
        all_gather_replica_sharded_graph(
            NamedTensors(w=t), replica_groups=NamedReplicaGrouping(v=ir4.replica_grouping())
        )


def test_sharded_variables_are_loaded_and_gathered(ir4: popxl.Ir, run: Any, rng: Any):
    facts = NamedVariableFactories(w=VariableFactory(lambda: np.zeros((4, 6), "float32")))
    buffers = named_variable_buffers(facts)
    variables = facts.init_remote(buffers)
    load, names = load_remote_graph(buffers)
    shards = NamedTensors.pack(names, load.call(0))
    gather, names = all_gather_replica_sharded_graph(shards)
    (whole,) = gather.bind(shards).call()
    data = rng.normal(size=(4, 6)).astype("float32")
    (result,) = run([whole], weights={variables.w: data})
    np.testing.assert_array_equal(result, np.broadcast_to(data, (4, 4, 6)))
