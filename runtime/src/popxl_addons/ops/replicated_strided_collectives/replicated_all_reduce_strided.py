"""All-reduces over groups given by stride and size."""

from __future__ import annotations

import popxl
from popart import popart_exception
from popxl import ReplicaGrouping, Tensor, ops
from popxl.ops.collectives.collectives import CollectiveOps
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.ops.replicated_all_reduce_TP.replicated_all_reduce_TP import (
    differentiable_all_reduce,
)

__all__ = [
    "replicated_all_reduce_strided",
    "replicated_all_reduce_strided_graph",
    "replicated_all_reduce_strided_identical_grad_inputs",
    "replicated_all_reduce_strided_identical_inputs",
]

_REDUCTIONS = ("add", "mean")


def _check(op: CollectiveOps) -> None:
    if op not in _REDUCTIONS:
        raise popart_exception(f"A strided all-reduce is one of {_REDUCTIONS}, not {op!r}")


def replicated_all_reduce_strided(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Reduce over a group of replicas (default all), forwards and backwards.

    Raises:
        popart_exception: an op other than "add" and "mean".
    """
    _check(op)
    return differentiable_all_reduce(t, op, group)


def replicated_all_reduce_strided_identical_inputs(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Identity forwards, for `t` equal on all replicas of the group; reduction backwards."""
    _check(op)
    return differentiable_all_reduce(t, op, group, forward=False)


def replicated_all_reduce_strided_identical_grad_inputs(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Reduction forwards; identity backwards, for gradients equal on all replicas."""
    _check(op)
    return differentiable_all_reduce(t, op, group, backward=False)


def replicated_all_reduce_strided_graph(
    tensors: NamedTensors,
    op: CollectiveOps = "add",
    group: ReplicaGrouping | None = None,
    use_io_tiles: bool = False,
) -> tuple[GraphWithNamedArgs, list[str]]:
    """A graph that reduces each tensor. (mended) Upstream it always fails.

    Args:
        tensors: their specs are used, and their flat keys name the graph's inputs.
        op: the reduction.
        group: replicas to reduce over (default all).
        use_io_tiles: copy the inputs to IO tiles first.

    Returns:
        The graph and the flat keys in the order of its outputs.
    """
    names, sources = tensors.unpack()
    args = NamedTensors()

    def all_reduce_strided() -> list[popxl.Tensor]:
        outputs = []
        inputs = {}
        for name, t in zip(names, sources, strict=True):
            inputs[name] = popxl.graph_input(t.shape, t.dtype, name, meta_shape=t.meta_shape)
            source = ops.io_tile_copy(inputs[name]) if use_io_tiles else inputs[name]
            outputs.append(replicated_all_reduce_strided(source, op, group))
            args.insert(name, inputs[name], overwrite=True)
        return outputs

    graph = popxl.gcg().ir.create_graph(all_reduce_strided)
    return GraphWithNamedArgs(graph, args), list(names)
