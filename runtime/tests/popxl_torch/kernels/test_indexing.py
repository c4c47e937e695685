"""Windows and rows as a GPU reads and writes them: without asking the host where they begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import Site, indexing, kernel_entry
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.mark.parametrize("seed", range(20))
def test_windows_by_positions_are_those_by_slices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 7, 4).tolist()
    axes = [int(axis) - 4 for axis in rng.permutation(4)[: rng.integers(1, 4)]]
    sizes = [int(rng.integers(1, shape[axis] + 1)) for axis in axes]
    # Some of them stick out.
    starts = torch.tensor([int(rng.integers(-2, shape[axis] + 2)) for axis in axes]).int()
    t = torch.from_numpy(rng.normal(size=shape))
    expected = indexing.read_window(t, axes, sizes, starts)
    places = list(zip(axes, indexing._positions(t, axes, sizes, starts), strict=True))
    found = t
    for axis, positions in places:
        found = found.index_select(axis, positions)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    window = torch.from_numpy(rng.normal(size=expected.shape))
    by_slices, by_positions = t.clone(), t.clone()
    indexing.write_window(by_slices, axes, starts, window)
    indexing._put(by_positions, places, window)
    torch.testing.assert_close(by_positions, by_slices, rtol=0, atol=0)
    assert not torch.equal(by_slices, t)


def test_a_gpu_is_not_asked_where_windows_and_rows_are() -> None:
    with FakeTensorMode():
        t = torch.empty(2, 9, 4, dtype=torch.float16, device="cuda:0")
        start = torch.empty(1, dtype=torch.int32, device="cuda:0")
        indexing.write_window(t, [-2], start, torch.empty(3, 4, device="cuda:0"))
        assert indexing.read_window(t, [-2], [3], start).shape == (2, 3, 4)


def test_rows_of_a_table_on_the_host_are_gathered_there() -> None:
    # More than are looked at one by one.
    specs = [Spec((10, 4), "float16"), Spec((100,), "int32")]
    attrs = {"axis": 0, "zero_oor": True, "group_size": 1}
    run = kernel_entry("Gather").factory(
        Site("Gather", attrs, specs, [Spec((100, 4), "float16")]), 0
    )
    with FakeTensorMode():
        table = torch.empty(10, 4, dtype=torch.float16)
        rows = run(table, torch.empty(100, dtype=torch.int32, device="cuda:0"))
    assert rows.is_cuda
    assert rows.shape == (100, 4)
