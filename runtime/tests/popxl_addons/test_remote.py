"""Remote buffers of named tensors."""

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
    create_remote_buffer,
    load_remote_graph,
    named_buffers,
    named_variable_buffers,
    store_remote_graph,
)
from popxl_addons.remote import load_remote, store_remote


def factories(rng: np.random.Generator, **options: Any) -> NamedVariableFactories:
    """b: (4, 2) and a.c: (8,), integers that differ with every draw."""

    def draw(*shape: int) -> Any:
        return lambda: rng.integers(-99, 99, size=shape).astype("float32")

    return NamedVariableFactories.from_dict(
        {"b": VariableFactory(draw(4, 2), **options), "a.c": VariableFactory(draw(8), **options)}
    )


def shape_of(buffer: popxl.RemoteBuffer) -> tuple:
    return buffer.tensor_shape, buffer.meta_shape, buffer.entries


def test_buffers_of_one_replica_are_whole(ir: popxl.Ir, rng: np.random.Generator):
    buffers = named_variable_buffers(factories(rng), entries=3)
    assert {k: shape_of(v) for k, v in buffers.to_dict().items()} == {
        "b": ((4, 2), (), 3),
        "a.c": ((8,), (), 3),
    }


@pytest.mark.parametrize(
    ("shard_over", "b", "c"),
    [
        (True, ((2,), (4, 2), 1), ((2,), (8,), 1)),
        (False, ((4, 2), (), 1), ((8,), (), 1)),
        (2, ((4,), (4, 2), 1), ((4,), (8,), 1)),
        ({"b": 1}, ((4, 2), (), 1), ((2,), (8,), 1)),
    ],
)
def test_sharded_buffers(shard_over: Any, b: tuple, c: tuple, ir4: popxl.Ir, rng: Any):
    buffers = named_variable_buffers(factories(rng), shard_over_dict=shard_over)
    assert shape_of(buffers.b) == b
    assert shape_of(buffers.a.c) == c


@pytest.mark.parametrize("shard_over", [0, 5, "all", None])
def test_wrong_numbers_of_shards(shard_over: Any, ir4: popxl.Ir, rng: np.random.Generator):
    with pytest.raises(ValueError, match="1 to the group size 4 of b"):
        named_variable_buffers(factories(rng), shard_over_dict=shard_over)


def test_create_remote_buffer(ir4: popxl.Ir):
    spec = popxl.TensorSpec((2,), popxl.float16, (4, 2))
    assert shape_of(create_remote_buffer(spec, 5)) == ((2,), (4, 2), 5)
    # The whole shape as meta shape: nothing is cut.
    spec = popxl.TensorSpec((4, 2), popxl.float16, (4, 2))
    assert shape_of(create_remote_buffer(spec)) == ((4, 2), (4, 2), 1)
    pair = ir4.replica_grouping(group_size=2)
    spec = popxl.TensorSpec((4, 2), popxl.float16)
    assert shape_of(create_remote_buffer(spec, replica_group=pair)) == ((4,), (4, 2), 1)
    assert shape_of(create_remote_buffer(spec, 1, pair, 1)) == ((4, 2), (), 1)
    with pytest.raises(ValueError, match="3 elements of shape"):
        create_remote_buffer(popxl.TensorSpec((3,), popxl.float16))


def test_named_buffers(ir4: popxl.Ir):
    t = popxl.variable(np.zeros((4, 2), "float32"))
    assert shape_of(named_buffers(NamedTensors(t=t), 2).t) == ((2,), (4, 2), 2)


def test_load_graph(ir: popxl.Ir, run: Any, rng: np.random.Generator):
    facts = factories(rng)
    buffers = named_variable_buffers(facts, entries=3)
    variables = [facts.init_remote(buffers, i, f"layer{i}") for i in range(3)]
    load, names = load_remote_graph(buffers)
    assert load.graph.name.startswith("load_remote_subgraph")
    assert names == ["a.c", "b"]
    assert [t.name for t in load.graph.inputs] == ["load_index"]
    assert [t.name for t in load.graph.outputs] == ["a.c_remote_loaded", "b_remote_loaded"]
    params = NamedTensors.pack(names, load.call(1))
    index = popxl.constant(2, popxl.int32)
    loaded = [params.b, params.a.c, *load.call(index), load_remote(buffers, 0).b]
    data = {
        key: [rng.normal(size=t.shape).astype("float32") for _ in range(3)]
        for key, t in params.to_dict().items()
    }
    weights = {v[k]: data[k][i] for i, v in enumerate(variables) for k in data}
    results = run(loaded, weights=weights)
    b, c = data["b"], data["a.c"]
    for result, expected in zip(results, [b[1], c[1], c[2], b[2], b[0]], strict=True):
        np.testing.assert_array_equal(result, expected)


def test_entries_grow(ir: popxl.Ir, rng: np.random.Generator):
    buffers = named_variable_buffers(factories(rng), entries=3)
    load_remote_graph(buffers, 2)
    assert buffers.b.entries == 3
    store_remote_graph(buffers, 7)
    assert buffers.b.entries == buffers.a.c.entries == 7


def test_store_graph(ir: popxl.Ir, run: Any, rng: np.random.Generator):
    buffers = named_variable_buffers(factories(rng), entries=3)
    store = store_remote_graph(buffers)
    assert [t.name for t in store.graph.inputs] == ["store_index", "a.c", "b"]
    assert store.args.keys_flat() == ["a.c", "b"]
    data = {"b": rng.normal(size=(4, 2)), "a.c": rng.normal(size=8), "extra": np.zeros(1)}
    tensors = NamedTensors.from_dict(
        {k: popxl.variable(v.astype("float32")) for k, v in data.items()}
    )
    with popxl.in_sequence():
        assert store.bind(tensors).call(2) == ()
        store_remote(buffers, NamedTensors(b=tensors.b + tensors.b), 1)
        loaded = [load_remote(buffers, i) for i in (1, 2)]
        results = run([loaded[0].b, loaded[1].b, loaded[1].a.c])
    expected = [2 * data["b"].astype("float32"), *(data[k].astype("float32") for k in ("b", "a.c"))]
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)
    with pytest.raises(ValueError, match="Not enough inputs"):
        store.bind(NamedTensors(b=tensors.b)).call(0)


def test_a_loop_walks_the_entries(ir: popxl.Ir, run: Any, rng: np.random.Generator):
    facts = factories(rng)
    buffers = named_variable_buffers(facts, entries=5)
    variables = [facts.init_remote(buffers, i, f"layer{i}") for i in range(5)]
    load, names = load_remote_graph(buffers)

    def step(total: popxl.Tensor, index: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        params = NamedTensors.pack(names, load.call(index))
        return total + params.b, index + 1

    zero = popxl.constant(np.zeros((4, 2), "float32"))
    graph = ir.create_graph(step, zero, popxl.constant(0, popxl.int32))
    total, _ = ops.repeat(graph, 5, zero, popxl.constant(0, popxl.int32))
    data = rng.integers(-99, 99, size=(5, 4, 2)).astype("float32")
    (result,) = run([total], weights={v.b: data[i] for i, v in enumerate(variables)})
    np.testing.assert_array_equal(result, data.sum(0))
