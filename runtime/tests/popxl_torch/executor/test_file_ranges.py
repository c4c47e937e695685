"""The files behind arrays: views of maps in every form that weights take."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from popxl_torch.executor.file_ranges import FileRange, MappedFiles


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(rng.bytes(40_000))
    return path


def _bytes_of(array: np.ndarray, found: FileRange) -> bool:
    """Whether the range holds an array's elements from its first to its last."""
    low, high = np.lib.array_utils.byte_bounds(array)
    whole = np.frombuffer(found.path.read_bytes()[found.start : found.end], np.uint8)
    mine = np.lib.stride_tricks.as_strided(
        array.view() if array.flags.c_contiguous else array, array.shape, array.strides
    )
    again = np.ndarray(mine.shape, mine.dtype, whole, 0, mine.strides)
    return high - low == found.end - found.start and np.array_equal(again, mine)


def test_views_of_any_strides_are_found(path: Path):
    mapped = np.memmap(path, np.uint8, "r")
    matrix = np.asarray(mapped[96 : 96 + 4 * 30 * 20]).view("<i4").reshape(30, 20)
    files = MappedFiles()
    files.add(matrix.T)
    for view in (matrix, matrix.T, matrix[3:7], matrix.reshape(3, 10, 20).transpose(0, 2, 1)):
        found = files.find(view)
        assert found is not None
        assert _bytes_of(view, found)
    assert files.find(matrix[2:]) == FileRange(path, 96 + 160, 96 + 2400)


def test_offsets_of_maps_count(path: Path):
    array = np.memmap(path, "<i2", "r", offset=5002, shape=(10, 10))
    files = MappedFiles()
    files.add(array)
    assert files.find(np.asarray(array)) == FileRange(path, 5002, 5202)


def test_a_file_that_has_become_shorter_is_named(path: Path):
    files = MappedFiles()
    files.add(np.memmap(path, np.uint8, "r", offset=1000, shape=5000))
    for size, good in ((6000, True), (5999, False), (0, False)):
        os.truncate(path, size)
        if good:
            files.check_sizes()
        else:
            with pytest.raises(OSError, match=rf"shorter: {size:,} bytes where 6,000.*weights"):
                files.check_sizes()
    path.unlink()
    MappedFiles().check_sizes()


def test_codes_and_scales_of_a_storage_are_found(path: Path, tmp_path: Path):
    codes = np.memmap(path, np.int8, "r", shape=(8, 8))
    scales = np.memmap(path, "<f4", "r", offset=64, shape=(8,))
    files = MappedFiles()
    files.add(SimpleNamespace(popxl_storage={"codes": codes, "scales": scales}))
    assert files.find(np.asarray(codes)) == FileRange(path, 0, 64)
    assert files.find(np.asarray(scales)) == FileRange(path, 64, 96)


def test_what_is_no_read_only_map_of_a_file_is_not_found(path: Path):
    others = [np.zeros(10), np.memmap(path, np.uint8, "c"), np.memmap(path, np.uint8, "r+")]
    files = MappedFiles()
    for array in others:
        files.add(array)
        assert files.find(np.asarray(array)) is None


def test_a_view_that_leaves_most_of_its_span_out_is_not_found(path: Path):
    array = np.memmap(path, np.uint8, "r", shape=(100, 100))
    files = MappedFiles()
    files.add(array)
    assert files.find(np.asarray(array)[:, :10]) is None
    assert files.find(np.asarray(array)[:, :90]) is not None
