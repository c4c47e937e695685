"""What a model folder is written of: the rows of its files, in order, drawn from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.checkpoint import Checkpoint
from utils.checkpoint_layout import WORD_EMBEDDING
from utils.errors import UserError
from utils.folder_layout import JOINED_PROJECTION, QUANTISABLE, folder_tensors, part_of, slab_of
from utils.model_folder import FLOATS
from utils.quantise import (
    FORMATS,
    GROUP,
    SCALE_SUFFIX,
    QuantisedWeight,
    can_quantise,
    quantise,
    stored_shapes,
)
from utils.safetensors_header import ALIGNMENT

Array = npt.NDArray[Any]
Pieces = Callable[[], Iterator[Array]]

PADDING = "__padding__"
SLAB_ALIGNMENT = 4096
STORAGES = (*FLOATS, *FORMATS)
"""What weights can be stored as."""

_PIECE_ITEMS = 1 << 21


@dataclass(frozen=True)
class Storage:
    """How weights are stored.

    Attributes:
        dtype: one of `STORAGES`.
        parts: which weights a quantised dtype is for, names of `QUANTISABLE`; others are float16.
    """

    dtype: str = "float16"
    parts: tuple[str, ...] = ("blocks",)

    def __post_init__(self) -> None:
        """Raises UserError for an unknown dtype or part."""
        for what, value, known in (
            ("dtype", self.dtype, STORAGES),
            *(("part", part, tuple(QUANTISABLE)) for part in self.parts),
        ):
            if value not in known:
                raise UserError(f"{what} {value!r} is unknown; expected one of {', '.join(known)}")

    @property
    def floats(self) -> str:
        """Type of the tensors that are not quantised."""
        return self.dtype if self.dtype in FLOATS else "float16"

    @property
    def quantised(self) -> tuple[str, ...]:
        """Parts that are quantised."""
        return self.parts if self.dtype in FORMATS else ()


@dataclass
class Row:
    """One tensor of a file that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    pieces: Pieces


def folder_files(
    checkpoint: Checkpoint, config: MagmaConfig, storage: Storage
) -> dict[str, list[Row]]:
    """The rows of every file, paddings included: one file for a block, one for other phases.

    Raises:
        UserError: the checkpoint is quantised already, or a weight does not fit the format.
    """
    if checkpoint.is_quantised:
        raise UserError(f"{checkpoint.path}: is quantised; convert the checkpoint it was made of")
    groups: dict[str, dict[str, list[Row]]] = {}
    for name, entry in folder_tensors(config).items():
        slab = slab_of(name)
        group = slab if slab.startswith(("decoder", "embedding", "lm_head")) else "image_prefix"
        rows = _rows(checkpoint, name, entry.shape, storage)
        groups.setdefault(group, {}).setdefault(slab, []).extend(rows)
    names = (f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1))
    return {
        name: _with_padding(list(slabs.values()))
        for name, slabs in zip(names, groups.values(), strict=True)
    }


def _rows(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], storage: Storage) -> list[Row]:
    """A tensor of the folder; if it is quantised, its codes and its scales."""
    pieces = _pieces(checkpoint, name, shape, storage.floats)
    if not _is_quantised(name, shape, storage):
        size_bytes = math.prod(shape) * FLOATS[storage.floats].itemsize
        return [Row(name, shape, storage.floats, size_bytes, pieces)]

    @lru_cache(1)
    def both() -> tuple[Array, Array]:
        whole = np.concatenate([piece.reshape(-1) for piece in pieces()])
        return quantise(whole.reshape(shape), storage.dtype)

    stored = stored_shapes(shape, storage.dtype)
    return [
        Row(name + suffix, part.shape, part.dtype, part.size_bytes, lambda i=i: iter([both()[i]]))
        for i, (suffix, part) in enumerate(zip(("", SCALE_SUFFIX), stored, strict=True))
    ]


def planned_tensors(config: MagmaConfig, storage: Storage) -> dict[str, Array]:
    """Stand-ins for the tensors of a folder: their shapes and storage, zeros without memory.

    Nobody can write to them, so engines keep them as they are.
    """

    def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        zero = np.zeros((), dtype)
        zero.flags.writeable = False
        return np.broadcast_to(zero, shape)

    tensors: dict[str, Array] = {}
    for name, entry in folder_tensors(config).items():
        if _is_quantised(name, entry.shape, storage):
            parts = stored_shapes(entry.shape, storage.dtype)
            codes, scales = (zeros(part.shape, part.dtype) for part in parts)
            tensors[name] = QuantisedWeight.of_stored(storage.dtype, codes, scales)  # type: ignore[assignment]
        else:
            tensors[name] = zeros(entry.shape, FLOATS[storage.floats])
    return tensors


def _is_quantised(name: str, shape: tuple[int, ...], storage: Storage) -> bool:
    """Whether a tensor of the folder is quantised.

    Raises:
        UserError: it should be and does not fit the format.
    """
    if part_of(name) not in storage.quantised or len(shape) < 2:
        return False
    if not can_quantise(shape, storage.dtype):
        raise UserError(
            f"the tensor {name} {shape} cannot be stored as {storage.dtype}, which needs rows of a "
            f"multiple of {GROUP}; convert with --dtype int8"
        )
    return True


def _with_padding(slabs: list[list[Row]]) -> list[Row]:
    rows: list[Row] = []
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


def _padding(number: int, size_bytes: int) -> Row:
    zeros = np.zeros(size_bytes, np.uint8)
    return Row(f"{PADDING}.{number}", (size_bytes,), "uint8", size_bytes, lambda: iter([zeros]))


def _pieces(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str) -> Pieces:
    """How to get a tensor of the folder from the checkpoint, in parts that follow each other."""

    def arrays() -> Iterator[Array]:
        if JOINED_PROJECTION in name and name not in checkpoint:
            names = (name.replace(JOINED_PROJECTION, f"{x}_proj") for x in "qkv")
            for heads in zip(*(checkpoint[n].reshape(-1, *shape[2:]) for n in names), strict=True):
                yield from heads
            return
        yield np.asarray(checkpoint[name])
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
