"""NamedReplicaGrouping, and groupings that stay inside an instance or a link domain."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from typing import TypeVar

import popdist
import popxl
from popxl import ReplicaGrouping
from popxl_addons.dot_tree import DotTree

CLS = TypeVar("CLS", bound="NamedReplicaGrouping")

# Replicas that share the fast links of one pod, when the environment doesn't say.
_DEFAULT_LINK_DOMAIN = 64
_warned = False


def fill_none_group(rg: ReplicaGrouping | None, none_value: ReplicaGrouping) -> ReplicaGrouping:
    """`rg`, or `none_value` if it is None."""
    return none_value if rg is None else rg


class NamedReplicaGrouping(DotTree[popxl.ReplicaGrouping]):
    """A tree of replica groupings."""

    @classmethod
    def build_groups(cls: type[CLS], names: Sequence[str], value: ReplicaGrouping) -> CLS:
        """The same grouping under every name."""
        return cls.pack(names, [value] * len(names))


def _all_replicas(replica_grouping: ReplicaGrouping | None) -> ReplicaGrouping:
    if replica_grouping is not None:
        return replica_grouping
    return popxl.gcg().ir.replica_grouping()


def get_instance_replica_grouping(
    replica_grouping: ReplicaGrouping | None = None,
) -> ReplicaGrouping:
    """The grouping, checked to repeat itself in each instance (default: all replicas).

    Raises:
        ValueError: groups are not the same in each instance.
        NotImplementedError: the grouping has no constant stride.
    """
    rg = _all_replicas(replica_grouping)
    _ = rg.stride
    local_size = popxl.gcg().ir.instance_replication_factor
    assignment = list(rg.assignment)
    local = assignment[:local_size]
    if local * (len(assignment) // local_size) != assignment:
        raise ValueError(
            f"get_instance_replica_grouping: {rg!r} is not the same in each instance of"
            f" {local_size} replicas"
        )
    return rg


def is_cross_instance(replica_grouping: ReplicaGrouping) -> bool:
    """Whether members of a group lie in different instances."""
    span = replica_grouping.group_size * replica_grouping.stride
    return span > popxl.gcg().ir.instance_replication_factor


def get_ild_size_from_popdist() -> int:
    """Replicas of one link domain: `ipuLinkDomainSize` of POPLAR_TARGET_OPTIONS, or at most 64."""
    global _warned
    size = json.loads(os.environ.get("POPLAR_TARGET_OPTIONS") or "{}").get("ipuLinkDomainSize")
    if size is not None:
        return int(size)
    if popdist.isPopdistEnvSet() and not _warned:
        _warned = True
        warnings.warn(
            "POPLAR_TARGET_OPTIONS does not give ipuLinkDomainSize:"
            f" {_DEFAULT_LINK_DOMAIN} replicas are assumed",
            stacklevel=2,
        )
    return min(popxl.gcg().ir.replication_factor, _DEFAULT_LINK_DOMAIN)


def is_cross_ild(replica_grouping: ReplicaGrouping) -> bool:
    """Whether members of a group lie in different link domains."""
    span = replica_grouping.group_size * replica_grouping.stride
    return span > get_ild_size_from_popdist()


def get_ild_replica_grouping(replica_grouping: ReplicaGrouping | None = None) -> ReplicaGrouping:
    """The grouping, cut so that groups stay inside a link domain (default: all replicas).

    Raises:
        ValueError: the stride is larger than a link domain.
        NotImplementedError: the grouping has no constant stride.
    """
    rg = _all_replicas(replica_grouping)
    size = get_ild_size_from_popdist()
    if rg.stride > size:
        raise ValueError(f"{rg!r}: the stride is larger than a link domain of {size} replicas")
    if not is_cross_ild(rg):
        return rg
    return popxl.gcg().ir.replica_grouping(rg.stride, size // rg.stride)
