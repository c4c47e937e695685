"""Files are complete or absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import atomic_file, require_writable


def test_file_appears_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_file(path, 4) as file:
        file.write(b"xxxx")
        file.seek(0)
        file.write(b"ab")
        assert not path.exists()
    assert path.read_bytes() == b"abxx"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_file(tmp_path / "a.bin"):
        pass
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_any_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_unusable_places_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "is a device or pipe"),
        (tmp_path / "no" / "a.bin", "the folder .* is missing"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(UserError, match=words) as error, atomic_file(path):
            pass
        assert str(path) in str(error.value)
        with pytest.raises(UserError, match=words):
            require_writable(path)
    require_writable(tmp_path / "a.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="no space left: 1,000,000,000,000,000,000 bytes are needed"),
        atomic_file(tmp_path / "a.bin", 10**18),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
