"""All-reduces of tensor-parallel layers, which differ in what they do forwards and backwards.

Where a replicated activation enters sharded computation, put the one with identical inputs:
nothing to do forwards, a sum backwards. Where sharded partial results leave it, put the one with
identical gradient inputs: a sum forwards, nothing backwards.
"""

from __future__ import annotations

from popart import popart_exception
from popxl import ReplicaGrouping, Tensor
from popxl.context import get_current_context
from popxl.ops.collectives.collectives import CollectiveOps, _groups
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph
from popxl_torch.ir.opdef import OpDef, define, same

__all__ = [
    "replicated_all_reduce",
    "replicated_all_reduce_identical_grad_inputs",
    "replicated_all_reduce_identical_inputs",
]

# popxl's names of reductions; only the sum has the gradients that this module is about.
_REDUCTIONS = ("add", "mean", "mul", "min", "max", "and", "or", "square_add")


# popxl's own all-reduce has no gradient; these have. The engine computes the pure kinds.
define(OpDef("ReplicatedAllReduceTP", same, pure="ReplicatedAllReduce"))
define(OpDef("IdenticalInputsTP", same, pure="Identity", moves_data=True))


def differentiable_all_reduce(
    t: Tensor, op: str, group: ReplicaGrouping | None, forward: bool = True, backward: bool = True
) -> Tensor:
    """A reduction ("add" or "mean") that is done forwards, backwards, or both ways."""
    check_in_graph(get_current_context().graph, t=t)
    kind = "ReplicatedAllReduceTP" if forward else "IdenticalInputsTP"
    attrs = {"op": op, "groups": _groups(group), "backward": "reduce" if backward else "identity"}
    return _create_op(kind, [t], attrs, [f"{t.name.rpartition('/')[2]}_all_reduce"])[0]


@gradient("ReplicatedAllReduceTP", "IdenticalInputsTP")
def _gradients(site: GradSite) -> Grads:
    if site.attrs["backward"] == "identity":
        return [site.grad]
    attrs = {**site.attrs, "backward": "reduce"}
    return [lambda: _create_op("ReplicatedAllReduceTP", [site.grad()], attrs, ["grad_sum"])[0]]


def _check(op: CollectiveOps, group: ReplicaGrouping | None) -> None:
    if op not in _REDUCTIONS:
        raise ValueError(f"Not a valid op: {op!r}. Choose from {_REDUCTIONS}.")
    if op != "add":
        raise popart_exception(f"A tensor-parallel all-reduce is a sum ('add'), not {op!r}")
    if group is not None:
        _ = group.stride  # NotImplementedError without a constant one


def replicated_all_reduce(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Sum over a group of replicas (default all), forwards and backwards.

    Raises:
        ValueError: an unknown op.
        popart_exception: an op other than "add".
        NotImplementedError: the group has no constant stride.
    """
    _check(op, group)
    return differentiable_all_reduce(t, op, group)


def replicated_all_reduce_identical_inputs(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Identity forwards, for `t` equal on all replicas of the group; sum backwards.

    Upstream this is an all-reduce until a pattern removes it; here it is made an identity at once.
    Errors are those of `replicated_all_reduce`.
    """
    _check(op, group)
    return differentiable_all_reduce(t, op, group, forward=False)


def replicated_all_reduce_identical_grad_inputs(
    t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None
) -> Tensor:
    """Sum over the group forwards; identity backwards, for gradients equal on all replicas.

    Errors are those of `replicated_all_reduce`.
    """
    _check(op, group)
    return differentiable_all_reduce(t, op, group, backward=False)
