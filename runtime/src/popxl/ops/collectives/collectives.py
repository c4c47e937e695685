"""Names that the collectives share."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

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


class CommGroupType(Enum):
    """How older programs named groups of replicas."""

    All = auto()
    Consecutive = auto()
    Orthogonal = auto()
    Ungrouped = auto()


class CommGroup:
    """A group type and size, as older programs named groups. Functions take ReplicaGrouping."""

    def __init__(self, type: CommGroupType = CommGroupType.All, replicaGroupSize: int = 0) -> None:
        self.type = type
        self.replicaGroupSize = replicaGroupSize


def to_collective_op(op: CollectiveOps) -> str:
    """The reduction that ``op`` names; ValueError for unknown names."""
    if op not in OP_MAP or op == "local":
        raise ValueError(f"Not a valid op: {op!r}. Must choose from {sorted(OP_MAP)}.")
    return OP_MAP[op]


def _groups(group: ReplicaGrouping | None) -> tuple[tuple[int, ...], ...]:
    """Members of each group, default one group of all replicas."""
    grouping = get_current_context().ir.replica_grouping() if group is None else group
    if not grouping.is_const:
        raise NotImplementedError(f"Collectives need a grouping with one stride, not {grouping}.")
    grouping._check_tiling(ValueError)
    return tuple(tuple(members) for members in grouping._members())


def _name(t: Tensor, suffix: str) -> str:
    return f"{t.name.rpartition('/')[2]}{suffix}"
