"""Remote buffers for named tensors: make them, load from them, store to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import popxl
from popxl import ReplicaGrouping, ops
from popxl_addons.dot_tree import DotTree
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.variable_factory import NamedVariableFactories, VariableFactory

__all__ = [
    "create_remote_buffer",
    "load_remote_graph",
    "named_buffers",
    "named_variable_buffers",
    "store_remote_graph",
]

ShardOver = Mapping[str, int] | int | bool


class NamedRemoteBuffers(DotTree[popxl.RemoteBuffer]):
    """A tree of remote buffers."""


def named_buffers(tensors: NamedTensors, entries: int = 1) -> NamedRemoteBuffers:
    """A buffer for each tensor, under the same flat key, sharded over all replicas.

    (mended) Upstream it always fails.
    """
    return NamedRemoteBuffers.from_dict(
        {key: create_remote_buffer(t.spec, entries) for key, t in tensors.to_dict().items()}
    )


def named_variable_buffers(
    factories: NamedVariableFactories, entries: int = 1, shard_over_dict: ShardOver = True
) -> NamedRemoteBuffers:
    """A buffer for each factory, under the same flat key.

    Args:
        entries: variables that each buffer holds.
        shard_over_dict: number of shards over the replica group. True is the whole group,
            False none; a mapping gives it by flat key (missing: the whole group).

    Raises:
        ValueError: a number of shards outside 1 .. group size, or something else.
    """
    return NamedRemoteBuffers.from_dict(
        {
            key: create_remote_buffer(
                popxl.TensorSpec(factory.shape, factory.dtype, factory.meta_shape or ()),
                entries,
                factory.replica_grouping,
                _shard_over(key, factory, shard_over_dict),
            )
            for key, factory in factories.to_dict().items()
        }
    )


def _shard_over(key: str, factory: VariableFactory, shards: ShardOver) -> int:
    group_size = factory.replica_grouping.group_size
    if isinstance(shards, bool):
        return group_size if shards else 1
    if isinstance(shards, Mapping):
        return shards.get(key, group_size)
    if isinstance(shards, int) and 1 <= shards <= group_size:
        return shards
    raise ValueError(
        "named_variable_buffers: shard_over_dict is a mapping, a bool or an int from 1 to the"
        f" group size {group_size} of {key}, got {shards!r}"
    )


def create_remote_buffer(
    spec: popxl.TensorSpec | popxl.Tensor,
    entries: int = 1,
    replica_group: ReplicaGrouping | None = None,
    shard_over: int | None = None,
) -> popxl.RemoteBuffer:
    """A remote buffer for tensors of a spec.

    Args:
        spec: anything with shape, dtype and meta_shape. With a meta shape it already is a
            shard, and the buffer is a plain one of that shape and meta shape.
        entries: number of tensors.
        replica_group: default all replicas.
        shard_over: number of shards (default, and for 0: the whole group).

    Raises:
        ValueError: the number of elements is no multiple of `shard_over`.
    """
    shape = tuple(spec.shape)
    if spec.meta_shape:
        buffer = popxl.remote_buffer(shape, spec.dtype, entries)
        buffer.meta_shape = tuple(spec.meta_shape)
        return buffer
    group = replica_group or popxl.gcg().ir.replica_grouping()
    shard_over = shard_over or group.group_size
    if shard_over <= 1:
        return popxl.remote_buffer(shape, spec.dtype, entries)
    if math.prod(shape) % shard_over != 0:
        raise ValueError(
            f"create_remote_buffer: {math.prod(shape)} elements of shape {shape} do not divide"
            f" into {shard_over} shards"
        )
    host_shape = (group.num_groups, *shape) if group.num_groups > 1 else shape
    return popxl.replica_sharded_buffer(host_shape, spec.dtype, group, shard_over, entries)


def _raise_entries(buffers: NamedRemoteBuffers, entries: int) -> None:
    for buffer in buffers.to_dict().values():
        buffer.entries = max(buffer.entries, entries)


def _exchange(use_io_tiles: bool) -> AbstractContextManager[Any]:
    return popxl.io_tiles() if use_io_tiles else nullcontext()


def _load_all(
    buffers: NamedRemoteBuffers, entry: int | popxl.Tensor, use_io_tiles: bool
) -> dict[str, popxl.Tensor]:
    """Loads in `unpack` order, without an order among them."""
    names, remote = buffers.unpack()
    with popxl.in_sequence(False), _exchange(use_io_tiles):
        loaded = [ops.remote_load(b, entry, n) for n, b in zip(names, remote, strict=True)]
    if use_io_tiles:
        loaded = [ops.io_tile_copy(t) for t in loaded]
    return dict(zip(names, loaded, strict=True))


def load_remote_graph(
    buffers: NamedRemoteBuffers, entries: int = 1, use_io_tiles: bool = False
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that loads one entry of each buffer.

    Args:
        buffers: their `entries` are raised to at least `entries`.
        use_io_tiles: load on IO tiles.

    Returns:
        The graph, with one input (the entry, int32) and an output per buffer, and the flat
        keys in the order of the outputs.
    """
    _raise_entries(buffers, entries)

    def load_remote(load_index: popxl.Tensor) -> list[popxl.Tensor]:
        return list(_load_all(buffers, load_index, use_io_tiles).values())

    load_remote.__qualname__ = "load_remote"
    graph = popxl.gcg().ir.create_graph(load_remote, popxl.TensorSpec((), popxl.int32))
    names, _ = buffers.unpack()
    return GraphWithNamedArgs(graph), list(names)


def load_remote(
    buffers: NamedRemoteBuffers, entry: int | popxl.Tensor = 0, use_io_tiles: bool = False
) -> NamedTensors:
    """Load one entry of each buffer in the current graph."""
    loaded = _load_all(buffers, entry, use_io_tiles)
    return NamedTensors.from_dict({key: loaded[key] for key in buffers.keys_flat()})


def _store_all(
    buffers: NamedRemoteBuffers,
    tensors: Mapping[str, popxl.Tensor],
    entry: int | popxl.Tensor,
    use_io_tiles: bool,
) -> None:
    remote = buffers.to_dict()
    if use_io_tiles:
        tensors = {key: ops.io_tile_copy(t) for key, t in tensors.items()}
    with popxl.in_sequence(False), _exchange(use_io_tiles):
        for key, tensor in tensors.items():
            ops.remote_store(remote[key], entry, tensor)


def store_remote_graph(
    buffers: NamedRemoteBuffers, entries: int = 1, use_io_tiles: bool = False
) -> GraphWithNamedArgs:
    """A graph that stores one entry of each buffer.

    Args:
        buffers: their `entries` are raised to at least `entries`.
        use_io_tiles: store from IO tiles.

    Returns:
        The graph. Its first input is the entry (int32); the tensors are named args under the
        buffers' flat keys.
    """
    _raise_entries(buffers, entries)
    args = NamedTensors()

    def store_remote(store_index: popxl.Tensor) -> None:
        names, remote = buffers.unpack()
        inputs = {
            name: popxl.graph_input(
                b.tensor_shape, b.tensor_dtype, name, meta_shape=b.meta_shape or None
            )
            for name, b in zip(names, remote, strict=True)
        }
        for name, tensor in inputs.items():
            args.insert(name, tensor, overwrite=True)
        _store_all(buffers, inputs, store_index, use_io_tiles)

    store_remote.__qualname__ = "store_remote"
    graph = popxl.gcg().ir.create_graph(store_remote, popxl.TensorSpec((), popxl.int32))
    return GraphWithNamedArgs(graph, args)


def store_remote(
    buffers: NamedRemoteBuffers,
    tensors: NamedTensors,
    entry: int | popxl.Tensor = 0,
    use_io_tiles: bool = False,
) -> None:
    """Store tensors in the buffers with the same flat keys, in the current graph. Keys of one
    side only are ignored."""
    paired = {key: t for key, t in tensors.to_dict().items() if key in buffers.to_dict()}
    _store_all(buffers, paired, entry, use_io_tiles)
