"""Replica groupings: assignments, transposition, irregular ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from popxl import ops

REGULAR = [
    # replicas, stride, group size, assignment
    (8, 1, 8, [0, 0, 0, 0, 0, 0, 0, 0]),
    (8, 1, 2, [0, 0, 1, 1, 2, 2, 3, 3]),
    (8, 2, 4, [0, 1, 0, 1, 0, 1, 0, 1]),
    (8, 2, 2, [0, 1, 0, 1, 2, 3, 2, 3]),
    (8, 4, 2, [0, 1, 2, 3, 0, 1, 2, 3]),
    (8, 4, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    (8, 1, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    (1, 1, 1, [0]),
    (6, 2, 3, [0, 1, 0, 1, 0, 1]),
]


def members(grouping: popxl.ReplicaGrouping) -> list[list[int]]:
    assignment = grouping.assignment
    return [
        [r for r, g in enumerate(assignment) if g == group] for group in range(max(assignment) + 1)
    ]


@pytest.mark.parametrize(("replicas", "stride", "size", "assignment"), REGULAR)
def test_regular(replicas: int, stride: int, size: int, assignment: list[int]):
    ir = popxl.Ir(replicas)
    grouping = ir.replica_grouping(stride=stride, group_size=size)
    assert grouping.assignment == assignment
    assert grouping.stride == (1 if size == 1 else stride)
    assert grouping.group_size == size
    assert grouping.num_groups == replicas // size
    assert grouping.is_const
    assert grouping.const_rg is grouping
    assert grouping.to_device_map is None
    assert grouping.to_host_map is None
    assert ir.replica_grouping_from_assignments(assignment) == grouping
    assert repr(grouping) == (
        f"ReplicaGrouping(num_replicas={replicas}, stride={grouping.stride}, group_size={size},"
        f" num_groups={replicas // size})"
    )


def test_default_group_size():
    ir = popxl.Ir(8)
    assert ir.replica_grouping().group_size == 8
    assert ir.replica_grouping(stride=2).group_size == 4


@pytest.mark.parametrize(
    ("stride", "size", "message"),
    [
        (0, 2, "Stride must be greater than zero"),
        (-1, 2, "Stride must be greater than zero"),
        (9, 2, "Stride must be greater than zero"),
        (3, None, "Stride must be a factor"),
        (1, 0, "Group size must be greater than zero"),
        (1, 9, "Group size must be greater than zero"),
        (4, 4, "must divide"),
        (1, 3, "must divide"),
    ],
)
def test_regular_errors(stride: int, size: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        popxl.Ir(8).replica_grouping(stride, size)


def test_stride_zero_without_a_group_size():
    with pytest.raises(ZeroDivisionError):
        popxl.Ir(8).replica_grouping(0)


def test_stride_three_of_four():
    with pytest.raises(ValueError, match="Stride must be a factor"):
        popxl.Ir(4).replica_grouping(stride=3)


def test_constructor():
    with pytest.raises(RuntimeError):
        popxl.ReplicaGrouping()


def test_comparisons():
    ir = popxl.Ir(4)
    grouping = ir.replica_grouping(2)
    assert grouping == ir.replica_grouping(2, 2)
    assert grouping != ir.replica_grouping(1)
    assert grouping != popxl.Ir(4).replica_grouping(2)
    for foreign in (None, 2, [0, 1, 0, 1]):
        with pytest.raises(TypeError):
            assert grouping == foreign
    with pytest.raises(TypeError):
        hash(grouping)


@pytest.mark.parametrize(
    ("replicas", "before", "after"),
    [
        (8, (1, 8), (1, 1)),
        (8, (1, 1), (1, 8)),
        (16, (1, 4), (4, 4)),
        (16, (4, 4), (1, 4)),
        (8, (2, 4), (1, 2)),
        (8, (4, 2), (1, 4)),
    ],
)
def test_transpose(replicas: int, before: tuple[int, int], after: tuple[int, int]):
    ir = popxl.Ir(replicas)
    assert ir.replica_grouping(*before).transpose() == ir.replica_grouping(*after)


def test_transpose_to_an_irregular_grouping():
    ir = popxl.Ir(8)
    regular = ir.replica_grouping(2, 2)
    irregular = regular.transpose()
    assert irregular.assignment == [0, 0, 1, 1, 0, 0, 1, 1]
    assert not irregular.is_const
    assert irregular.transpose() == regular


def test_irregular():
    ir = popxl.Ir(8)
    grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
    assert not grouping.is_const
    assert grouping.const_rg.assignment == [0, 0, 1, 1, 2, 2, 3, 3]
    assert grouping.const_rg.is_const
    assert grouping.to_device_map == [0, 1, 0, 1]
    assert grouping.to_host_map == [0, 1]
    assert (grouping.group_size, grouping.num_groups) == (4, 2)
    assert repr(grouping) == "ReplicaGrouping(assignment=[0, 0, 1, 1, 0, 0, 1, 1])"
    with pytest.raises(NotImplementedError):
        _ = grouping.stride
    with pytest.raises(NotImplementedError):
        _ = grouping._pb_replica_grouping


@pytest.mark.parametrize(
    ("assignment", "const_stride", "const_size", "device_map", "host_map"),
    [
        ([0, 1, 1, 0], 1, 1, [0, 1, 1, 0], [0, 1]),
        # pieces of length 3 and 1: their greatest common divisor is 1
        ([0, 0, 0, 1, 1, 1, 1, 0], 1, 1, [0, 0, 0, 1, 1, 1, 1, 0], [0, 3]),
        # pieces 2, 2 and 4, 0: cut to 2
        ([0, 0, 1, 1, 1, 1, 0, 0], 1, 2, [0, 1, 1, 0], [0, 1]),
        # smallest spacing 2
        ([0, 1, 0, 1, 2, 0, 2, 0, 1, 2, 1, 2], 2, 2, [0, 1, 2, 0, 1, 2], [0, 1, 2]),
    ],
)
def test_constant_refinements(
    assignment: list[int],
    const_stride: int,
    const_size: int,
    device_map: list[int],
    host_map: list[int],
):
    grouping = popxl.Ir(len(assignment)).replica_grouping_from_assignments(assignment)
    assert (grouping.const_rg.stride, grouping.const_rg.group_size) == (const_stride, const_size)
    assert grouping.to_device_map == device_map
    assert grouping.to_host_map == host_map


@st.composite
def assignments(draw: st.DrawFn) -> list[int]:
    """Groups of equal size, numbered by their first members."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shuffled = draw(st.permutations([g for g in range(groups) for _ in range(size)]))
    numbers = {g: i for i, g in enumerate(dict.fromkeys(shuffled))}
    return [numbers[g] for g in shuffled]


@given(assignments())
@settings(max_examples=100)
def test_every_grouping_has_a_constant_refinement(assignment: list[int]):
    grouping = popxl.Ir(len(assignment)).replica_grouping_from_assignments(assignment)
    fine = grouping.const_rg
    assert fine.is_const
    for group, replicas in enumerate(members(fine)):
        owners = {grouping.assignment[r] for r in replicas}
        assert len(owners) == 1
        if not grouping.is_const:
            assert grouping.to_device_map is not None
            assert owners == {grouping.to_device_map[group]}


@given(assignments())
@settings(max_examples=100)
def test_transposing_collects_the_members_of_equal_position(assignment: list[int]):
    grouping = popxl.Ir(len(assignment)).replica_grouping_from_assignments(assignment)
    turned = grouping.transpose()
    columns = sorted(list(c) for c in map(sorted, zip(*members(grouping), strict=True)))
    assert sorted(members(turned)) == columns
    assert turned.num_groups == grouping.group_size


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ([0, 0, 0, 1], "All groups should have the same size"),
        ([0, 0, 2, 2], "not numbered consecutively"),
        ([1, 1, 2, 2], "not numbered consecutively"),
        ([1, 1, 0, 0], "not monotonically increasing"),
        ([0, 0], "does not equal the number of replicas"),
    ],
)
def test_assignment_errors(assignment: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        popxl.Ir(4).replica_grouping_from_assignments(assignment)


def test_a_grouping_of_another_number_of_replicas():
    ir = popxl.Ir(2)
    grouping = ir.replica_grouping()
    ir.replication_factor = 4
    with ir.main_graph:
        with pytest.raises(popart.popart_exception):
            popxl.variable(1, replica_grouping=grouping)
        with pytest.raises(ValueError, match="replicas"):
            ops.collectives.replicated_all_reduce(popxl.variable(1), group=grouping)


@pytest.mark.parametrize("mode", [None, "one_per_group", "all_replicas"])
def test_variable_settings(mode: Any):
    grouping = popxl.Ir(4).replica_grouping(2)
    settings = grouping._to_variable_settings(mode)
    assert settings.sharedVariableDomain == grouping
    expected = "AllReplicas" if mode == "all_replicas" else "OnePerGroup"
    assert settings.retrievalMode is popart.VariableRetrievalMode[expected]


def test_assignment_is_a_copy():
    grouping = popxl.Ir(4).replica_grouping()
    grouping.assignment.append(9)
    np.testing.assert_array_equal(grouping.assignment, [0, 0, 0, 0])
