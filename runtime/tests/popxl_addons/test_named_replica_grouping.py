"""Groupings by name, and groupings that stay inside a domain."""

from __future__ import annotations

import popxl
import pytest
from popxl_addons.named_replica_grouping import (
    NamedReplicaGrouping,
    fill_none_group,
    get_ild_replica_grouping,
    get_ild_size_from_popdist,
    get_instance_replica_grouping,
    is_cross_ild,
    is_cross_instance,
)


def test_build_groups(ir4: popxl.Ir):
    group = ir4.replica_grouping(group_size=2)
    named = NamedReplicaGrouping.build_groups(["a", "b.c"], group)
    assert named.a is named["b.c"] is group


def test_fill_none_group(ir4: popxl.Ir):
    group, other = ir4.replica_grouping(group_size=2), ir4.replica_grouping()
    assert fill_none_group(None, group) is group
    assert fill_none_group(other, group) is other


def test_one_instance(ir4: popxl.Ir):
    group = ir4.replica_grouping(stride=2, group_size=2)
    assert get_instance_replica_grouping(group) is group
    assert not is_cross_instance(group)
    uneven = ir4.replica_grouping_from_assignments([0, 1, 1, 0])
    with pytest.raises(NotImplementedError):
        get_instance_replica_grouping(uneven)


@pytest.mark.parametrize(
    ("stride", "size", "domain", "expected"),
    [(1, 4, 2, [0, 0, 1, 1]), (1, 4, 4, [0] * 4), (2, 2, 2, [0, 1, 2, 3]), (1, 2, 2, [0, 0, 1, 1])],
)
def test_link_domains(
    stride: int,
    size: int,
    domain: int,
    expected: list[int],
    ir4: popxl.Ir,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("POPLAR_TARGET_OPTIONS", f'{{"ipuLinkDomainSize": "{domain}"}}')
    assert get_ild_size_from_popdist() == domain
    group = ir4.replica_grouping(stride=stride, group_size=size)
    assert is_cross_ild(group) == (stride * size > domain)
    assert list(get_ild_replica_grouping(group).assignment) == expected


def test_link_domain_defaults(ir4: popxl.Ir, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("POPLAR_TARGET_OPTIONS", raising=False)
    assert get_ild_size_from_popdist() == 4
    assert list(get_ild_replica_grouping().assignment) == [0] * 4
    monkeypatch.setenv("POPLAR_TARGET_OPTIONS", '{"ipuLinkDomainSize": 1}')
    with pytest.raises(ValueError, match="stride is larger"):
        get_ild_replica_grouping(ir4.replica_grouping(stride=2, group_size=2))
