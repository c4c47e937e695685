"""Random checkpoints in exactly the published layout, of any size, streamed.

As a program it writes one, of a preset's sizes or of any others (the full model's take 13 GB)::

    python -m utils.checkpoint_writer mp_rank_00_model_states.pt --config magma_v1_500
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from config.config import MagmaConfig
from config.parsing import parse_config
from utils.checkpoint_layout import PUBLISHED_POSITIONS, TensorEntry, alias_name
from utils.errors import UserError
from utils.files import atomic_file
from utils.program import run_program
from utils.progress import Advance, byte_progress
from utils.random_tensors import Array, RandomTensors
from utils.safetensors_header import ALIGNMENT, SAFETENSORS_NAMES, safetensors_header

FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
FORMATS = ("pt", "safetensors")
_ZIP_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_BYTES_PER_ENTRY = 1024  # bound on what the directories of either format need per tensor

_TORCH_STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "bool": "BoolStorage",
    "int64": "LongStorage",
}


def write_random_checkpoint(
    path: str | os.PathLike[str],
    config: MagmaConfig,
    seed: int = 0,
    dtype: str = "float16",
    format: str = "pt",
    with_aliases: bool = True,
    module_level: bool = True,
    positions: int = PUBLISHED_POSITIONS,
    progress: bool = False,
) -> None:
    """Writes a random checkpoint of the sizes that ``config`` gives, a few megabytes at a time.

    Args:
        path: the file to write; it appears when complete, or not at all.
        config: sizes of the model.
        seed: numbers differ between seeds and are the same on every machine.
        dtype: "float16" (as published), "float32" or "bfloat16", of all floating tensors.
        format: "pt" (PyTorch's zip file) or "safetensors", which has neither aliases nor levels.
        with_aliases: list the blocks and the embedding a second time, sharing storage.
        module_level: put the tensors under "module" among the entries that DeepSpeed writes.
        positions: size of the causal masks and of the sine and cosine tables.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: unknown dtype or format, no space left, or the folder cannot be written.
    """
    for what, value, known in (("dtype", dtype, FLOAT_BYTES), ("format", format, FORMATS)):
        if value not in known:
            raise UserError(f"{what} {value!r} is unknown; expected one of {', '.join(known)}")
    tensors = RandomTensors(config, seed, dtype, positions)
    payload_bytes = sum(e.size_bytes(FLOAT_BYTES[dtype]) for e in tensors.entries.values())
    needed_bytes = payload_bytes + _BYTES_PER_ENTRY * len(tensors) + (1 << 16)
    with atomic_file(path, needed_bytes) as file, byte_progress(payload_bytes, progress) as advance:
        if format == "pt":
            _write_torch(file, tensors, dtype, (with_aliases, module_level), advance)
        else:
            _write_safetensors(file, tensors, dtype, advance)


# ---- PyTorch's zip file -------------------------------------------------------------------------


class _Storage:
    """Stands for a torch storage while pickling."""

    def __init__(self, key: str, dtype: str, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count


class _Tensor:
    """Stands for a torch tensor over a whole storage while pickling."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        from torch import _utils

        strides = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return _utils._rebuild_tensor_v2, (self.storage, 0, self.shape, strides, False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        import torch

        storage_class = getattr(torch, _TORCH_STORAGES[obj.dtype])
        return ("storage", storage_class, obj.key, "cpu", obj.count)


def _write_torch(
    file: BinaryIO,
    tensors: RandomTensors,
    dtype: str,
    levels: tuple[bool, bool],
    advance: Advance,
) -> None:
    with_aliases, module_level = levels
    stand_ins = {}
    for key, (name, entry) in enumerate(tensors.entries.items()):
        stored = dtype if entry.dtype == "float" else entry.dtype
        stand_ins[name] = _Tensor(_Storage(str(key), stored, math.prod(entry.shape)), entry.shape)
    state = OrderedDict(_listed(stand_ins, with_aliases))
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(_deepspeed_entries(state) if module_level else state)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_record(archive, file, "data.pkl", [pickled.getvalue()])
        _write_record(archive, file, "byteorder", [b"little"])
        for name, stand_in in stand_ins.items():
            data = map(_as_bytes, tensors.pieces(name))
            size_bytes = tensors.entries[name].size_bytes(FLOAT_BYTES[dtype])
            _write_record(archive, file, f"data/{stand_in.storage.key}", data, size_bytes)
            advance(size_bytes)
        _write_record(archive, file, "version", [b"3\n"])


def _listed(tensors: Mapping[str, _Tensor], with_aliases: bool) -> Iterator[tuple[str, _Tensor]]:
    """Names in the published order: the language model, its aliases, the image prefix."""
    aliases = ((alias_name(name), tensor) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if name.startswith("lm."):
            yield name, tensor
    if with_aliases:
        for alias, tensor in aliases:
            if alias is not None:
                yield alias, tensor
    for name, tensor in tensors.items():
        if not name.startswith("lm."):
            yield name, tensor


def _deepspeed_entries(state: OrderedDict[str, _Tensor]) -> dict[str, Any]:
    """The level that a DeepSpeed 0.5 engine writes around a module's tensors."""
    return {
        "module": state,
        "buffer_names": [],
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": 149_999},
        "csr_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 150_000,
        "global_samples": 38_400_000,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"train_batch_size": 256, "fp16": {"enabled": True}},
        "ds_version": "0.5.0",
        "global_step": 150_000,
        "config": None,
    }


def _as_bytes(array: Array) -> memoryview:
    return array.view(np.uint8).data


def _write_record(
    archive: zipfile.ZipFile,
    file: BinaryIO,
    name: str,
    pieces: Sequence[bytes] | Iterator[memoryview],
    size_bytes: int = 0,
) -> None:
    """Adds one uncompressed record whose data starts at a multiple of 64 bytes, as torch does."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = size_bytes
    start = file.tell() + _ZIP_HEADER_BYTES + len(info.filename) + 4
    if size_bytes * 1.05 > zipfile.ZIP64_LIMIT:
        start += _ZIP64_EXTRA_BYTES
    padding = -start % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w") as record:
        for piece in pieces:
            record.write(piece)


# ---- safetensors --------------------------------------------------------------------------------


def _write_safetensors(
    file: BinaryIO, tensors: RandomTensors, dtype: str, advance: Advance
) -> None:
    entries = tensors.entries
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Widest types first, so that every tensor is aligned without gaps, which the format forbids.
    order = sorted(entries, key=lambda name: -_item_bytes(entries[name], dtype))
    for name in order:
        entry = entries[name]
        end = offset + entry.size_bytes(FLOAT_BYTES[dtype])
        stored = dtype if entry.dtype == "float" else entry.dtype
        header[name] = {
            "dtype": SAFETENSORS_NAMES[stored],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    file.write(safetensors_header(header, ALIGNMENT))
    for name in order:
        for piece in tensors.pieces(name):
            file.write(_as_bytes(piece))
        advance(entries[name].size_bytes(FLOAT_BYTES[dtype]))


def _item_bytes(entry: TensorEntry, dtype: str) -> int:
    return TensorEntry((), entry.kind, entry.dtype).size_bytes(FLOAT_BYTES[dtype])


# ---- program ------------------------------------------------------------------------------------


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="file to write, e.g. mp_rank_00_model_states.pt")
    parser.add_argument("--dtype", choices=tuple(FLOAT_BYTES), default="float16", help="of weights")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of OUT")


def _write(argv: Sequence[str] | None) -> None:
    config, options = parse_config(argv, "tiny", _add_options, __doc__)
    by_name = "safetensors" if options.out.endswith(".safetensors") else "pt"
    write_random_checkpoint(
        options.out,
        config,
        seed=config.seed,
        dtype=options.dtype,
        format=options.format or by_name,
        progress=True,
    )
    print(f"wrote {options.out}: {Path(options.out).stat().st_size:,} bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a random checkpoint as the command line says; returns the exit status."""
    return run_program(lambda: _write(argv))


if __name__ == "__main__":
    sys.exit(main())
