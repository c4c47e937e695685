"""Files that are complete or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError


@contextmanager
def atomic_file(path: str | os.PathLike[str], needed_bytes: int = 0) -> Iterator[BinaryIO]:
    """Opens a temporary file beside ``path`` that takes its place when the block ends well.

    Args:
        path: the final name; a plain file of that name is replaced.
        needed_bytes: bytes that will be written, checked against the free space first.

    Yields:
        The open file, binary, readable, seekable. On any error it is removed and nothing appears
        under the final name.

    Raises:
        UserError: the folder is missing, not writable or too full, or the name is taken by
            something that is no plain file.
    """
    path = Path(path)
    require_writable(path)
    folder = path.parent
    temporary = folder / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        free_bytes = shutil.disk_usage(folder).free
        if needed_bytes > free_bytes:
            raise UserError(
                f"{path}: no space left: {needed_bytes:,} bytes are needed, {free_bytes:,} are "
                f"free in {folder}; free some or name another folder"
            )
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the file: {_reason(error, needed_bytes)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def require_writable(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be written, before the work whose result it would hold.

    Raises:
        UserError: the folder is missing or not writable, or the name is taken by something that is
            no plain file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path}: cannot write the file, it is a folder; name a file inside it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot write the file, it is a device or pipe; name a file")
    except OSError as error:
        raise UserError(f"{path}: cannot write the file: {_reason(error)}") from error
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot write the file, the folder {path.parent} is missing")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot write into the folder {path.parent}")


def made_folder(path: str | os.PathLike[str]) -> Path:
    """A folder, which is made where there is none.

    Raises:
        UserError: it cannot be made, or the name is taken by something else.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot make the folder: {_reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{os.fspath(path)!r}: is no name of a folder ({error})") from error
    return Path(path)


def _reason(error: OSError, needed_bytes: int = 0) -> str:
    text = (error.strerror or str(error)).lower()
    return f"{text} ({needed_bytes:,} bytes are needed)" if needed_bytes else text
