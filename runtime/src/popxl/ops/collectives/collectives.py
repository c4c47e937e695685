"""Names that the collectives share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from popart import CommGroup as CommGroup
from popart import CommGroupType as CommGroupType
from popxl.context import get_current_context
from popxl.replica_grouping import ReplicaGrouping

if TYPE_CHECKING:
    from popxl.tensor import Tensor

CollectiveOps = Literal["add", "mean", "mul", "min", "max", "and", "or", "square_add"]

OP_MAP: dict[str, str] = {
    "add": "add",
    "mean": "mean",
    "mul": "mean",  # (quirk) the name "mul" has always computed the mean
    "min": "min",
    "max": "max",
    "and": "and",
    "or": "or",
    "square_add": "square_add",
    "local": "local",
}


def to_collective_op(op: CollectiveOps) -> str:
    """The reduction that ``op`` names; ValueError for unknown names."""
    if op not in OP_MAP or op == "local":
        raise ValueError(f"Not a valid op: {op!r}. Must choose from {sorted(OP_MAP)}.")
    return OP_MAP[op]


def _groups(group: ReplicaGrouping | None) -> tuple[tuple[int, ...], ...]:
    """Members of each group, default one group of all replicas."""
    grouping = get_current_context().ir.replica_grouping() if group is None else group
    grouping._check_tiling(ValueError)
    if not grouping.is_const:
        raise NotImplementedError(f"Collectives need a grouping with one stride, not {grouping}.")
    return tuple(tuple(members) for members in grouping._members())


def _name(t: Tensor, suffix: str) -> str:
    return f"{t.name.rpartition('/')[2]}{suffix}"
