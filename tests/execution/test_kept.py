"""Blocks and their contents, against a plain model of the least recently wanted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.kept import Blocks


class Table:
    """Blocks of a device, and what was written to them."""

    def __init__(self, count: int) -> None:
        self.rows: list[np.ndarray | None] = [None] * count
        self.writes = 0

    def fill(self, block: int, content: np.ndarray) -> None:
        self.rows[block] = content.copy()
        self.writes += 1


def content(number: int) -> np.ndarray:
    return np.full((2, 3), number, np.float32)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=12))
def test_every_content_is_where_it_is_said_to_be(calls):
    blocks, table = Blocks(4), Table(4)
    recent: list[int] = []  # the last 4 different contents, the newest call's at the end
    for call in calls:
        writes = table.writes
        missing = set(call) - set(recent)
        for block, number in zip(
            blocks.place([content(n) for n in call], table.fill), call, strict=True
        ):
            np.testing.assert_array_equal(table.rows[block], content(number))
        assert table.writes - writes == len(missing)
        order = sorted(call, key=lambda n: n not in recent)
        recent = [n for n in recent if n not in call] + list(dict.fromkeys(order))
        recent = recent[-4:]


def test_contents_are_told_apart_by_shape_and_dtype_too():
    blocks, table = Blocks(3), Table(3)
    same_bytes = [np.zeros((2, 2), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int32)]
    assert sorted(blocks.place(same_bytes, table.fill)) == [0, 1, 2]


def test_a_content_that_could_not_be_written_is_written_again():
    blocks, table = Blocks(1), Table(1)
    blocks.place([content(1)], table.fill)

    def broken(block: int, content: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blocks.place([content(2)], broken)
    for number, writes in ((1, 2), (2, 3), (2, 3)):
        assert blocks.place([content(number)], table.fill) == [0]
        assert table.writes == writes
