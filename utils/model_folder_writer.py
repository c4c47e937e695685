"""Writes model folders (:mod:`utils.model_folder`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.checkpoint import Checkpoint
from utils.checkpoint_files import CONVERSION_FILE, open_tensors
from utils.errors import UserError
from utils.files import atomic_file
from utils.model_folder import CONFIG_FILE, FORMAT, INDEX_FILE, file_sha256, is_model_folder
from utils.model_folder_rows import PADDING, SLAB_ALIGNMENT, Row, Storage, folder_files
from utils.progress import Advance, byte_progress
from utils.safetensors_header import SAFETENSORS_NAMES, safetensors_header
from utils.tokenizer import TOKENIZER_FILES, has_tokenizer

Array = npt.NDArray[Any]
_LOCK = "lock"


def write_model_folder(
    checkpoint: Checkpoint,
    config: MagmaConfig,
    out: str | os.PathLike[str],
    storage: Storage,
    progress: bool = False,
) -> None:
    """Writes the model folder of a checkpoint, a few megabytes at a time.

    It is made as ``OUT.partial`` and gets its name when it is complete. After an error, an
    interruption or a kill the same call goes on with the file that was not finished.

    Args:
        checkpoint: validated against ``config``; another model folder will do.
        config: sizes of the model, kept in the folder.
        out: the folder to write. Nothing of that name may exist.
        storage: how the weights are stored.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the name is taken, no space left, a weight too large for float16, or an
            unfinished folder of another conversion.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another folder")
    files = folder_files(checkpoint, config, storage)
    partial = out.with_name(out.name + ".partial")
    with _locked(partial):
        # The journal goes last, so without it a folder with an index only lacks its name.
        if not (is_model_folder(partial) and not (partial / CONVERSION_FILE).exists()):
            conversion = _Conversion(partial, _origin(checkpoint, config, storage))
            conversion.restore()
            _write_files(conversion, files, progress)
            _write_metadata(conversion, checkpoint, config, storage, files)
            (partial / CONVERSION_FILE).unlink()
        _complete(partial, out)


@dataclass
class _Conversion:
    """What is finished of a folder, kept in a journal inside of it."""

    folder: Path
    origin: dict[str, Any]
    finished: dict[str, dict[str, str]] = field(default_factory=dict)

    def restore(self) -> None:
        """Reads what an earlier call has finished.

        Raises:
            UserError: the folder belongs to another conversion.
        """
        for left in self.folder.glob(".*.part"):
            left.unlink()
        journal = self.folder / CONVERSION_FILE
        if not journal.exists():
            if any(path.name != _LOCK for path in self.folder.iterdir()):
                raise UserError(f"{self.folder}: is in the way and not ours; remove it")
            self.save()
            return
        try:
            content = json.loads(journal.read_bytes())
            origin, finished = content["origin"], dict(content["finished"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            origin, finished = None, {}
        if origin != self.origin:
            raise UserError(
                f"{self.folder}: holds an unfinished conversion of another checkpoint, or with "
                "other options; remove it, or finish it with those"
            )
        for name, sums in finished.items():
            # A file that was cut short or lost since is written again.
            with suppress(UserError):
                if open_tensors(self.folder / name).keys() >= sums.keys():
                    self.finished[name] = sums

    def save(self) -> None:
        """Writes the journal, whole or not at all."""
        content = {"origin": self.origin, "finished": self.finished}
        with atomic_file(self.folder / CONVERSION_FILE) as file:
            file.write(json.dumps(content, indent=1).encode())


def _origin(checkpoint: Checkpoint, config: MagmaConfig, storage: Storage) -> dict[str, Any]:
    """What must be equal for a conversion to go on."""
    sources = []
    for path in checkpoint.files:
        status = path.stat()
        sources.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return {
        "format": FORMAT,
        "sources": sources,
        "storage": [storage.dtype, *sorted(storage.quantised)],
        "config": _plain(config),
    }


def _plain(config: MagmaConfig) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    return dict(json.loads(json.dumps(config.as_dict())))


# ---- writing ------------------------------------------------------------------------------------


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Holds a folder for this process alone, making it where it is missing."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"{partial}: cannot make the folder: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{partial}: another process is writing this folder") from error
        yield


def _write_files(conversion: _Conversion, files: Mapping[str, list[Row]], progress: bool) -> None:
    sizes = {name: sum(row.size_bytes for row in rows) for name, rows in files.items()}
    with byte_progress(sum(sizes.values()), progress, "converting") as advance:
        left = {name: size for name, size in sizes.items() if name not in conversion.finished}
        advance(sum(sizes.values()) - sum(left.values()))
        _require_space(conversion.folder, sum(left.values()))
        for name, size in left.items():
            try:
                with atomic_file(conversion.folder / name, size) as file:
                    conversion.finished[name] = _write_rows(file, files[name], advance)
                conversion.save()
            except UserError as error:
                raise UserError(f"{error}; run the same command again to go on") from error


def _require_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder}: no space left: {needed_bytes:,} bytes are needed, {free_bytes:,} are free; "
            "free some and run the same command again"
        )


def _write_rows(file: BinaryIO, rows: list[Row], advance: Advance) -> dict[str, str]:
    """Writes a safetensors file; returns the checksums of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for row in rows:
        offsets = [offset, offset + row.size_bytes]
        header[row.name] = {
            "dtype": SAFETENSORS_NAMES[row.dtype],
            "shape": list(row.shape),
            "data_offsets": offsets,
        }
        offset = offsets[1]
    file.write(safetensors_header(header, SLAB_ALIGNMENT))
    return {row.name: _write_row(file, row, advance) for row in rows}


def _write_row(file: BinaryIO, row: Row, advance: Advance) -> str:
    digest = hashlib.sha256()
    written = 0
    for piece in row.pieces():
        data = np.ascontiguousarray(piece).view(np.uint8).data
        digest.update(data)
        written += file.write(data)
        advance(len(data))
    assert written == row.size_bytes, f"{row.name}: {written} bytes, expected {row.size_bytes}"
    return digest.hexdigest()


def _write_metadata(
    conversion: _Conversion,
    checkpoint: Checkpoint,
    config: MagmaConfig,
    storage: Storage,
    files: Mapping[str, list[Row]],
) -> None:
    """The configuration, the tokenizer where there is one, and last the index."""
    folder = conversion.folder
    content = {
        "model_type": "magma",
        "format": FORMAT,
        "dtype": storage.dtype,
        "config": config.as_dict(),
    }
    with atomic_file(folder / CONFIG_FILE) as file:
        file.write(json.dumps(content, indent=2).encode())
    _copy_tokenizer(checkpoint, folder)
    rows = [
        (row, file)
        for file, members in files.items()
        for row in members
        if not row.name.startswith(PADDING)
    ]
    index = {
        "metadata": {"total_size": sum(row.size_bytes for row, _ in rows)},
        "weight_map": {row.name: file for row, file in rows},
        "sha256": {row.name: conversion.finished[file][row.name] for row, file in rows},
        "files_sha256": {
            name: file_sha256(folder / name)
            for name in (CONFIG_FILE, *TOKENIZER_FILES)
            if (folder / name).is_file()
        },
    }
    with atomic_file(folder / INDEX_FILE) as file:
        file.write(json.dumps(index, indent=1).encode())


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    source = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if has_tokenizer(source):
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                with atomic_file(folder / name) as file:
                    file.write((source / name).read_bytes())


def _complete(partial: Path, out: Path) -> None:
    """Gives a finished folder its name."""
    try:
        (partial / _LOCK).unlink()
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot rename {partial} to it: {error.strerror}") from error
