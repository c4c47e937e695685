"""Writes model folders (:mod:`utils.model_folder`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.checkpoint import Checkpoint
from utils.checkpoint_files import CONVERSION_FILE
from utils.checkpoint_layout import WORD_EMBEDDING
from utils.errors import UserError
from utils.files import atomic_file
from utils.folder_layout import JOINED_PROJECTION, folder_tensors, slab_of
from utils.model_folder import CONFIG_FILE, FLOATS, FORMAT, INDEX_FILE, is_model_folder
from utils.progress import Advance, byte_progress
from utils.safetensors_header import ALIGNMENT, SAFETENSORS_NAMES, safetensors_header
from utils.tokenizer import TOKENIZER_FILES, has_tokenizer

Array = npt.NDArray[Any]
Pieces = Callable[[], Iterator[Array]]

PADDING = "__padding__"
SLAB_ALIGNMENT = 4096

_PIECE_ITEMS = 1 << 21
_LOCK = "lock"


def write_model_folder(
    checkpoint: Checkpoint,
    config: MagmaConfig,
    out: str | os.PathLike[str],
    dtype: str = "float16",
    progress: bool = False,
) -> None:
    """Writes the model folder of a checkpoint, a few megabytes at a time.

    It is made as ``OUT.partial`` and gets its name when it is complete. After an error, an
    interruption or a kill the same call goes on with the file that was not finished.

    Args:
        checkpoint: validated against ``config``; another model folder will do.
        config: sizes of the model, kept in the folder.
        out: the folder to write. Nothing of that name may exist.
        dtype: type of the stored weights, one of `FLOATS`.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: the name is taken, unknown dtype, no space left, a weight too large for the
            dtype, or an unfinished folder of another conversion.
    """
    out = Path(out)
    if dtype not in FLOATS:
        raise UserError(f"dtype {dtype!r} is unknown; expected one of {', '.join(FLOATS)}")
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another folder")
    files = _files(checkpoint, config, dtype)
    partial = out.with_name(out.name + ".partial")
    with _locked(partial):
        # The journal goes last, so without it a folder with an index only lacks its name.
        if not (is_model_folder(partial) and not (partial / CONVERSION_FILE).exists()):
            conversion = _Conversion(partial, _origin(checkpoint, config, dtype))
            conversion.restore()
            _write_files(conversion, files, progress)
            _write_metadata(conversion, checkpoint, config, dtype, files)
            (partial / CONVERSION_FILE).unlink()
        _complete(partial, out)


@dataclass
class _Row:
    """One tensor of a file that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    pieces: Pieces


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
        self.finished = {
            name: sums for name, sums in finished.items() if (self.folder / name).is_file()
        }

    def save(self) -> None:
        """Writes the journal, whole or not at all."""
        content = {"origin": self.origin, "finished": self.finished}
        with atomic_file(self.folder / CONVERSION_FILE) as file:
            file.write(json.dumps(content, indent=1).encode())


# ---- what is written ----------------------------------------------------------------------------


def _files(checkpoint: Checkpoint, config: MagmaConfig, dtype: str) -> dict[str, list[_Row]]:
    """The rows of every file, paddings included: one file for a block, one for other phases."""
    groups: dict[str, dict[str, list[_Row]]] = {}
    for name, entry in folder_tensors(config).items():
        slab = slab_of(name)
        group = slab if slab.startswith(("decoder", "embedding", "lm_head")) else "image_prefix"
        size_bytes = math.prod(entry.shape) * FLOATS[dtype].itemsize
        pieces = _pieces(checkpoint, name, entry.shape, dtype)
        row = _Row(name, entry.shape, dtype, size_bytes, pieces)
        groups.setdefault(group, {}).setdefault(slab, []).append(row)
    names = (f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1))
    return {
        name: _with_padding(list(slabs.values()))
        for name, slabs in zip(names, groups.values(), strict=True)
    }


def _with_padding(slabs: list[list[_Row]]) -> list[_Row]:
    rows: list[_Row] = []
    offset = 0
    for slab in slabs:
        for i, row in enumerate(slab):
            gap = -offset % (ALIGNMENT if i else SLAB_ALIGNMENT)
            if gap:
                rows.append(_padding(len(rows), gap))
            rows.append(row)
            offset += gap + row.size_bytes
    gap = -offset % SLAB_ALIGNMENT
    return [*rows, _padding(len(rows), gap)] if gap else rows


def _padding(number: int, size_bytes: int) -> _Row:
    zeros = np.zeros(size_bytes, np.uint8)
    return _Row(f"{PADDING}.{number}", (size_bytes,), "uint8", size_bytes, lambda: iter([zeros]))


def _pieces(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str) -> Pieces:
    """How to get a tensor of the folder from the checkpoint, in parts that follow each other."""

    def arrays() -> Iterator[Array]:
        if JOINED_PROJECTION in name and name not in checkpoint:
            names = (name.replace(JOINED_PROJECTION, f"{x}_proj") for x in "qkv")
            for heads in zip(*(checkpoint[n].reshape(-1, *shape[2:]) for n in names), strict=True):
                yield from heads
            return
        yield checkpoint[name]
        if name == WORD_EMBEDDING:
            yield np.zeros((shape[0] - checkpoint[name].shape[0], shape[1]), np.float16)

    def pieces() -> Iterator[Array]:
        for array in arrays():
            flat = array.reshape(-1)
            for start in range(0, flat.size, _PIECE_ITEMS):
                yield _converted(flat[start : start + _PIECE_ITEMS], dtype, name, checkpoint.path)

    return pieces


def _converted(values: Array, dtype: str, name: str, path: Path) -> Array:
    if dtype == "bfloat16":
        return _to_bfloat16(values.astype(np.float32))
    with np.errstate(over="ignore"):
        converted = values.astype(FLOATS[dtype], copy=False)
    if converted.dtype != values.dtype and np.isinf(converted).sum() > np.isinf(values).sum():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise UserError(
            f"{path}: the tensor {name} has the value {largest:g}, too large for {dtype}; "
            "convert with --dtype bfloat16 or float32"
        )
    return converted


def _to_bfloat16(values: Array) -> Array:
    """The upper halves of float32 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _origin(checkpoint: Checkpoint, config: MagmaConfig, dtype: str) -> dict[str, Any]:
    """What must be equal for a conversion to go on."""
    sources = []
    for path in checkpoint.files:
        status = path.stat()
        sources.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return {"format": FORMAT, "sources": sources, "dtype": dtype, "config": _plain(config)}


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


def _write_files(conversion: _Conversion, files: Mapping[str, list[_Row]], progress: bool) -> None:
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


def _write_rows(file: BinaryIO, rows: list[_Row], advance: Advance) -> dict[str, str]:
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


def _write_row(file: BinaryIO, row: _Row, advance: Advance) -> str:
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
    dtype: str,
    files: Mapping[str, list[_Row]],
) -> None:
    """The configuration, the tokenizer where there is one, and last the index."""
    folder = conversion.folder
    content = {
        "model_type": "magma",
        "format": FORMAT,
        "torch_dtype": dtype,
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
