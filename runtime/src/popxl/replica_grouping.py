"""Which replicas share a value, or communicate."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Literal

from popart import VariableRetrievalMode, VariableSettings

if TYPE_CHECKING:
    from popxl.ir import Ir


def _regular_assignment(replicas: int, stride: int, size: int) -> list[int]:
    """Group of each replica, numbered in order of their first members."""
    return [r % stride + stride * (r // (stride * size)) for r in range(replicas)]


class ReplicaGrouping:
    """A partition of the replicas into groups of equal size. Made by ``Ir.replica_grouping``.

    ``assignment[r]`` is replica r's group. Groups with one common spacing of members are regular:
    they have a ``stride`` and are the ones that collectives take.
    """

    _ir: Ir
    _assignment: list[int]

    def __init__(self) -> None:
        raise RuntimeError("Cannot construct a ReplicaGrouping; use ir.replica_grouping.")

    @classmethod
    def _make(cls, ir: Ir, assignment: list[int]) -> ReplicaGrouping:
        self = cls.__new__(cls)
        self._ir = ir
        self._assignment = assignment
        return self

    @classmethod
    def _strided(cls, ir: Ir, stride: int, group_size: int | None) -> ReplicaGrouping:
        factor = ir.replication_factor
        size = factor // stride if group_size is None else group_size
        if not 0 < stride <= factor:
            raise ValueError(
                f"Stride must be greater than zero and at most {factor}, not {stride}."
            )
        if factor % stride:
            raise ValueError(
                f"Stride must be a factor of the replication factor {factor}: {stride}."
            )
        if not 0 < size <= factor:
            raise ValueError(
                f"Group size must be greater than zero and at most {factor}, not {size}."
            )
        stride = 1 if size == 1 else stride
        if factor % (stride * size):
            raise ValueError(
                f"stride * group_size = {stride} * {size} must divide the replication factor"
                f" {factor}."
            )
        return cls._make(ir, _regular_assignment(factor, stride, size))

    @classmethod
    def _from_assignment(cls, ir: Ir, assignment: list[int]) -> ReplicaGrouping:
        groups = list(dict.fromkeys(assignment))
        counts = {assignment.count(group) for group in groups}
        if len(assignment) != ir.replication_factor:
            raise ValueError(
                f"The length {len(assignment)} of the assignment does not equal the number of"
                f" replicas {ir.replication_factor}."
            )
        if len(counts) > 1:
            raise ValueError("All groups should have the same size.")
        if sorted(groups) != list(range(len(groups))):
            raise ValueError("The groups are not numbered consecutively from 0.")
        if groups != sorted(groups):
            raise ValueError("The groups' first appearances are not monotonically increasing.")
        return cls._make(ir, list(assignment))

    def _members(self) -> list[list[int]]:
        """Replicas of each group in increasing order."""
        members: list[list[int]] = [[] for _ in range(self.num_groups)]
        for replica, group in enumerate(self._assignment):
            members[group].append(replica)
        return members

    def _spacings(self) -> set[int]:
        return {b - a for group in self._members() for a, b in itertools.pairwise(group)}

    def _check_tiling(self, error: type[Exception]) -> None:
        """A grouping made before the replication factor was set may not cover the replicas."""
        if len(self._assignment) != self._ir.replication_factor:
            raise error(f"{self} does not cover {self._ir.replication_factor} replicas.")

    @property
    def assignment(self) -> list[int]:
        """Group of each replica."""
        return list(self._assignment)

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return max(self._assignment) + 1

    @property
    def group_size(self) -> int:
        """Members per group."""
        return len(self._assignment) // self.num_groups

    @property
    def is_const(self) -> bool:
        """Whether one stride describes the grouping."""
        if len(self._spacings()) > 1:
            return False
        count = len(self._assignment)
        return self._assignment == _regular_assignment(count, self._stride(), self.group_size)

    def _stride(self) -> int:
        return min(self._spacings(), default=1)

    @property
    def stride(self) -> int:
        """Distance between members; NotImplementedError for irregular groupings."""
        if not self.is_const:
            raise NotImplementedError("A non-constant ReplicaGrouping has no stride.")
        return self._stride()

    @property
    def const_rg(self) -> ReplicaGrouping:
        """Itself, or the finest regular grouping whose groups refine this one's."""
        if self.is_const:
            return self
        smallest = min(self._spacings(), default=1)
        sizes = []
        for group in self._members():
            piece = 1
            for a, b in itertools.pairwise(group):
                if b - a > smallest:
                    sizes.append(piece)
                    piece = 0
                piece += 1
            sizes.append(piece)
        size = math.gcd(*sizes)
        stride = smallest if size > 1 else 1
        assignment = _regular_assignment(len(self._assignment), stride, size)
        return ReplicaGrouping._make(self._ir, assignment)

    @property
    def to_device_map(self) -> list[int] | None:
        """Group whose data go to each group of ``const_rg``; None for regular groupings."""
        if self.is_const:
            return None
        return [self._assignment[members[0]] for members in self.const_rg._members()]

    @property
    def to_host_map(self) -> list[int] | None:
        """Group of ``const_rg`` that is read back for each group; None for regular groupings."""
        device_map = self.to_device_map
        if device_map is None:
            return None
        return [device_map.index(group) for group in range(self.num_groups)]

    def transpose(self) -> ReplicaGrouping:
        """Group k is the k-th members of the groups: swaps who shares and who differs."""
        members = [0] * self.num_groups
        assignment = []
        for group in self._assignment:
            assignment.append(members[group])
            members[group] += 1
        return ReplicaGrouping._make(self._ir, assignment)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, ReplicaGrouping):
            raise TypeError(f"Cannot compare a ReplicaGrouping with {type(other)}.")
        return self._ir == other._ir and self._assignment == other._assignment

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if not self.is_const:
            return f"ReplicaGrouping(assignment={self._assignment})"
        return (
            f"ReplicaGrouping(num_replicas={len(self._assignment)}, stride={self.stride},"
            f" group_size={self.group_size}, num_groups={self.num_groups})"
        )

    @property
    def _pb_replica_grouping(self) -> ReplicaGrouping:
        if not self.is_const:
            raise NotImplementedError("A non-constant ReplicaGrouping has no low-level object.")
        return self

    def _to_variable_settings(
        self,
        retrieval_mode: Literal["one_per_group", "all_replicas"] | None = None,
    ) -> VariableSettings:
        modes = {"all_replicas": VariableRetrievalMode.AllReplicas}
        mode = modes.get(retrieval_mode or "", VariableRetrievalMode.OnePerGroup)
        return VariableSettings(self.const_rg, mode)
