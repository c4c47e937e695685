"""Replicated tensor sharding: tensors of which each replica of a group holds a 1-D shard."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import popxl
from popxl import ReplicaGrouping, ops
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_replica_grouping import NamedReplicaGrouping, fill_none_group
from popxl_addons.named_tensors import NamedTensors

if TYPE_CHECKING:
    from popxl.ops.collectives.collectives import CollectiveOps

__all__ = [
    "all_gather_replica_sharded_graph",
    "gather_replica_sharded_tensor",
    "reduce_replica_sharded_graph",
    "reduce_replica_sharded_tensor",
    "replica_sharded_spec",
]


def replica_sharded_spec(t: popxl.Tensor, shard_over: popxl.ReplicaGrouping) -> popxl.TensorSpec:
    """The spec of a tensor cut over the members of a group.

    It is the tensor's own spec if that is a shard already, the group has one member, or the
    elements do not divide.
    """
    size = shard_over.group_size
    if t.meta_shape or size == 1 or t.nelms % size != 0:
        return t.spec
    return popxl.TensorSpec((t.nelms // size,), t.dtype, tuple(t.shape))


def gather_replica_sharded_tensor(
    t: popxl.Tensor, use_io_tiles: bool = False, replica_group: ReplicaGrouping | None = None
) -> popxl.Tensor:
    """The whole tensor from shards over a group (default all replicas); a tensor without a
    meta shape is returned as it is."""
    if t.meta_shape:
        with popxl.io_tiles() if use_io_tiles else nullcontext():
            t = ops.collectives.replicated_all_gather(t, group=replica_group)
    return ops.io_tile_copy(t) if use_io_tiles else t


def _named_inputs(tensors: NamedTensors) -> NamedTensors:
    """An input of the current graph for each tensor, in `unpack` order."""
    names, sources = tensors.unpack()
    return NamedTensors.from_dict(
        {
            name: popxl.graph_input(t.shape, t.dtype, name, meta_shape=t.meta_shape or None)
            for name, t in zip(names, sources, strict=True)
        }
    )


def all_gather_replica_sharded_graph(
    tensors: NamedTensors,
    use_io_tiles: bool = False,
    replica_groups: NamedReplicaGrouping | None = None,
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that gathers tensors.

    Args:
        tensors: their specs are used, and their flat keys name the graph's inputs.
        use_io_tiles: gather on IO tiles.
        replica_groups: group of each flat key (default all replicas).

    Returns:
        The graph and the flat keys in the order of its outputs.

    Raises:
        KeyError: a flat key has no group.
    """
    names, _ = tensors.unpack()
    everyone = popxl.gcg().ir.replica_grouping()
    given = None if replica_groups is None else replica_groups.to_dict()
    groups = {name: everyone if given is None else given[name].const_rg for name in names}
    args = NamedTensors()

    def all_gather_replica_sharded() -> list[popxl.Tensor]:
        args.update(_named_inputs(tensors))
        return [
            gather_replica_sharded_tensor(t, use_io_tiles, groups[name])
            for name, t in args.to_dict().items()
        ]

    graph = popxl.gcg().ir.create_graph(all_gather_replica_sharded)
    return GraphWithNamedArgs(graph, args), list(names)


def reduce_replica_sharded_tensor(
    t: popxl.Tensor,
    op: CollectiveOps = "add",
    replica_group: ReplicaGrouping | None = None,
    shard_group: ReplicaGrouping | None = None,
) -> popxl.Tensor:
    """Reduce a tensor over a group and keep this replica's shard.

    Args:
        op: the reduction.
        replica_group: replicas to reduce over (default all).
        shard_group: replicas that share the result (default `replica_group`). It stays whole
            if that group has one member or its size doesn't divide the elements.
    """
    everyone = popxl.gcg().ir.replica_grouping()
    reduce_group = fill_none_group(replica_group, everyone)
    shard_group = fill_none_group(shard_group, reduce_group)
    collectives = ops.collectives
    shards = shard_group.group_size > 1 and t.nelms % shard_group.group_size == 0
    if shards and shard_group == reduce_group:
        return collectives.replicated_reduce_scatter(
            t, op, reduce_group, configure_output_for_replicated_tensor_sharding=True
        )
    if not shards or reduce_group.group_size > 1:
        t = collectives.replicated_all_reduce(t, op, reduce_group)
    return collectives.replica_sharded_slice(t, shard_group) if shards else t


def reduce_replica_sharded_graph(
    tensors: NamedTensors,
    op: CollectiveOps = "add",
    use_io_tiles: bool = False,
    shard_groups: NamedReplicaGrouping | None = None,
    replica_group: ReplicaGrouping | None = None,
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that applies `reduce_replica_sharded_tensor` to each tensor.

    Args:
        tensors: their specs are used, and their flat keys name the graph's inputs.
        use_io_tiles: copy the inputs to IO tiles and reduce there.
        shard_groups: shard group by flat key (missing: `replica_group`).
        replica_group: replicas to reduce over (default all).

    Returns:
        The graph and the flat keys in the order of its outputs.
    """
    names, _ = tensors.unpack()
    groups = {} if shard_groups is None else shard_groups.to_dict()
    args = NamedTensors()

    def reduce_replica_sharded() -> list[popxl.Tensor]:
        args.update(_named_inputs(tensors))
        outputs = []
        for name, t in args.to_dict().items():
            source = ops.io_tile_copy(t) if use_io_tiles else t
            with popxl.io_tiles() if use_io_tiles else nullcontext():
                outputs.append(
                    reduce_replica_sharded_tensor(source, op, replica_group, groups.get(name))
                )
        return outputs

    graph = popxl.gcg().ir.create_graph(reduce_replica_sharded)
    return GraphWithNamedArgs(graph, args), list(names)
