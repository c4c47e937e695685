"""Reads of files: whole and right whatever the system gives at a time; errors name them."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from popxl_torch.executor import file_reader
from popxl_torch.executor.file_ranges import FileRange
from popxl_torch.executor.file_reader import FileReader

SIZE = 3 * 4096 + 1234


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(rng.bytes(SIZE))
    return path


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_reader, "PIECE_BYTES", 8192)


def _read(path: Path, start: int = 0, end: int = SIZE) -> bytes:
    memory, reader = mmap.mmap(-1, 1 << 20), FileReader()
    try:
        reader.open(FileRange(path, start, end))
        reader.read_into(memoryview(memory), [FileRange(path, start, end)]).wait()
    finally:
        reader.close()
    return memory[: end - start]


def test_ranges_are_read_whole(path: Path):
    data = path.read_bytes()
    for start, end in [(0, SIZE), (4096, SIZE), (4096, 9000), (8192, 8193)]:
        assert _read(path, start, end) == data[start:end]


@pytest.mark.parametrize("most", [1, 700, 4096, 5000])
def test_reads_that_give_less_than_asked_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, most: int
):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:most]], at))
    monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    assert _read(path) == path.read_bytes()


def test_a_filesystem_that_cannot_read_directly_is_read_otherwise(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    preadv, refused = os.preadv, []

    def refuse(fd: int, buffers: list, at: int) -> int:
        if fd not in refused and len(refused) < 1:
            refused.append(fd)
        if fd in refused:
            raise OSError(errno.EINVAL, "no direct reads")
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", refuse)
    monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    assert _read(path) == path.read_bytes()
    assert refused


def test_a_removed_or_replaced_file_is_read_as_it_was(path: Path):
    data, memory, reader = path.read_bytes(), mmap.mmap(-1, 1 << 20), FileReader()
    reader.open(FileRange(path, 0, SIZE))
    path.unlink()
    path.write_bytes(b"x" * SIZE)
    reader.read_into(memoryview(memory), [FileRange(path, 0, SIZE)]).wait()
    reader.close()
    assert memory[:SIZE] == data


def test_errors_name_the_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OSError, match=r"shorter: 13,522 bytes where 13,523.*weights\.bin"):
        _read(path, 0, SIZE + 1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _read(path.with_name("nowhere"))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*weights\.bin"):
        _read(path)


def test_a_file_that_is_cut_while_it_is_open_is_an_error(path: Path):
    memory, reader = mmap.mmap(-1, 1 << 20), FileReader()
    reader.open(FileRange(path, 0, SIZE))
    os.truncate(path, 5000)
    with pytest.raises(OSError, match=r"shorter.*weights\.bin"):
        reader.read_into(memoryview(memory), [FileRange(path, 0, SIZE)]).wait()
    reader.close()


def test_closing_ends_threads_and_files(path: Path):
    before = set(Path("/proc/self/fd").iterdir())
    _read(path)
    assert not [t for t in threading.enumerate() if t.name.startswith("popxl_torch_read")]
    assert set(Path("/proc/self/fd").iterdir()) == before
