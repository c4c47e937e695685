"""Random checkpoints in exactly the published layout, of any size, streamed.

Numbers are drawn by seed and name, so any tensor can be drawn again alone (`random_tensor`), and
the float16 and bfloat16 files of a seed are the roundings of its float32 file. They are scaled so
that activations stay finite in float16 through all layers, and every tensor matters: batch-norm
statistics, biases and adapters are not at their usual initial values, and the logits depend on the
picture and on every token.

A value is one of 65,536 quantiles of the normal distribution, picked by 16 random bits: that is
seven times faster than drawing normals, and 6.4 billion are needed for the full model.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from utils.checkpoint_layout import (
    PUBLISHED_POSITIONS,
    Kind,
    TensorEntry,
    alias_name,
    expected_tensors,
)
from utils.errors import UserError
from utils.files import atomic_file

if TYPE_CHECKING:
    from config.config import MagmaConfig

Array = npt.NDArray[Any]

FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
FORMATS = ("pt", "safetensors")
_CHUNK = 1 << 16  # values drawn at once; fits the processor's cache
_BUFFER = 1 << 20  # values handed to the file at once
_ALIGNMENT = 64
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
_SAFETENSORS_NAMES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "bool": "BOOL",
    "int64": "I64",
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
    entries = expected_tensors(config, positions=positions)
    payload_bytes = sum(entry.size_bytes(FLOAT_BYTES[dtype]) for entry in entries.values())
    needed_bytes = payload_bytes + _BYTES_PER_ENTRY * len(entries) + (1 << 16)

    score_scale = math.sqrt(config.transformer.hidden_size / config.transformer.attention.heads)

    def pieces(name: str) -> Iterator[Array]:
        if name.endswith(".scale_attn"):
            return iter([_encode(np.full(1, score_scale, np.float32), dtype)])
        return _pieces(name, entries[name], seed, dtype)

    with atomic_file(path, needed_bytes) as file, _progress_bar(payload_bytes, progress) as advance:
        if format == "pt":
            levels = (with_aliases, module_level)
            _write_torch(file, entries, dtype, levels, pieces, advance)
        else:
            _write_safetensors(file, entries, dtype, pieces, advance)


def random_tensor(name: str, entry: TensorEntry, seed: int = 0, dtype: str = "float32") -> Array:
    """The values that a file of ``seed`` holds under a canonical name.

    Args:
        name: canonical name.
        entry: its row of the layout table.
        seed: the file's seed.
        dtype: the file's floating type; bfloat16 values come as their bits in uint16.

    Returns:
        Array of the entry's shape.
    """
    # Copies, because a piece is valid only until the next one.
    pieces = [piece.copy() for piece in _pieces(name, entry, seed, dtype)]
    return np.concatenate(pieces).reshape(entry.shape)


# ---- values -------------------------------------------------------------------------------------


def _pieces(name: str, entry: TensorEntry, seed: int, dtype: str) -> Iterator[Array]:
    """The flat values of one tensor; a drawn piece is overwritten by the next."""
    if entry.kind is Kind.RECOMPUTABLE:
        yield _buffer_values(name, entry, dtype).reshape(-1)
    elif entry.kind is Kind.COUNTER:
        yield np.full(1, 150_000, np.int64)
    else:
        centre, spread = _distribution(name, entry)
        yield from _draw(name, seed, math.prod(entry.shape), _quantiles(centre, spread, dtype))


# Centre and spread of vectors, and of the embedding; the first pattern that matches holds.
# Quantiles end at ±4.2, so variances stay positive.
_VECTORS = (
    (re.compile(r"running_var$"), 1.0, 0.15),
    (re.compile(r"(bias|running_mean)$"), 0.0, 0.05),
    (re.compile(r"wte\.weight$"), 0.0, 1.0),
    (re.compile(r"\.layer\d\.\d+\.bn3\.weight$"), 0.4, 0.1),  # forty blocks are summed
)

# Matrices keep the scale of what they multiply (spread 1/√fan-in) but for these gains: convolutions
# before a ReLU, which halves; attention sharp enough that single tokens and image positions tell
# in the logits; MLPs small beside the residual stream, so that these differences survive.
_GAINS = (
    (re.compile(r"\.enc\.conv\d\.|\.layer\d\.\d+\.conv[12]\."), math.sqrt(2)),
    (re.compile(r"\.[qk]_proj\."), 2.2),
    (re.compile(r"\.(c_proj|adapter\.[23])\.weight$"), 0.5),
    (re.compile(r"^lm\.lm_head\."), 2.0),
)


def _distribution(name: str, entry: TensorEntry) -> tuple[float, float]:
    """Centre and standard deviation of a tensor's values."""
    for pattern, centre, spread in _VECTORS:
        if pattern.search(name):
            return centre, spread
    if len(entry.shape) == 1:  # scales: of norms and of adapters
        return 1.0, 0.1
    gain = next((gain for pattern, gain in _GAINS if pattern.search(name)), 1.0)
    return 0.0, gain / math.sqrt(math.prod(entry.shape[1:]))


@lru_cache(maxsize=1)
def _normal_quantiles() -> npt.NDArray[np.float64]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)])


@lru_cache(maxsize=64)
def _quantiles(centre: float, spread: float, dtype: str) -> Array:
    return _encode((centre + spread * _normal_quantiles()).astype(np.float32), dtype)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> Array:
    """Rounds to the stored type; bfloat16, which numpy lacks, becomes its bits in uint16."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _draw(name: str, seed: int, count: int, table: Array) -> Iterator[Array]:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    source = np.random.SFC64(int.from_bytes(digest, "little"))
    buffer = np.empty(min(count, _BUFFER), table.dtype)
    for start in range(0, count, _BUFFER):
        piece = buffer[: min(_BUFFER, count - start)]
        for i in range(0, piece.size, _CHUNK):
            target = piece[i : i + _CHUNK]
            raw = np.atleast_1d(source.random_raw(-(-target.size // 4)))
            picks = raw.astype("<u8", copy=False).view("<u2")[: target.size]
            # "clip" skips a range check; 16 bits cannot leave a table of 65,536.
            np.take(table, picks, out=target, mode="clip")
        yield piece


def _buffer_values(name: str, entry: TensorEntry, dtype: str) -> Array:
    """What the original model's constructor puts into its buffers."""
    last = name.rpartition(".")[2]
    if last == "bias":
        return np.tril(np.ones(entry.shape[-2:], np.bool_))
    if last in ("sin", "cos"):
        positions, pairs = entry.shape
        rates = 10000.0 ** (-np.arange(pairs) / pairs)
        angles = np.arange(positions)[:, None] * rates
        return _encode(getattr(np, last)(angles).astype(np.float32), dtype)
    with np.errstate(over="ignore"):  # −1e9 is −inf in float16, as in the published file
        return _encode(np.full(1, -1e9, np.float32), dtype)


# ---- PyTorch's zip file -------------------------------------------------------------------------

_Pieces = Callable[[str], Iterator[Array]]
_Advance = Callable[[int], object]


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
    entries: Mapping[str, TensorEntry],
    dtype: str,
    levels: tuple[bool, bool],
    pieces: _Pieces,
    advance: _Advance,
) -> None:
    with_aliases, module_level = levels
    tensors = {}
    for key, (name, entry) in enumerate(entries.items()):
        stored = dtype if entry.dtype == "float" else entry.dtype
        tensors[name] = _Tensor(_Storage(str(key), stored, math.prod(entry.shape)), entry.shape)
    state = OrderedDict(_listed(tensors, with_aliases))
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(_deepspeed_entries(state) if module_level else state)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_record(archive, file, "data.pkl", [pickled.getvalue()])
        _write_record(archive, file, "byteorder", [b"little"])
        for name, tensor in tensors.items():
            data = pieces(name)
            size_bytes = entries[name].size_bytes(FLOAT_BYTES[dtype])
            _write_record(
                archive, file, f"data/{tensor.storage.key}", map(_as_bytes, data), size_bytes
            )
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
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w") as record:
        for piece in pieces:
            record.write(piece)


# ---- safetensors --------------------------------------------------------------------------------


def _write_safetensors(
    file: BinaryIO,
    entries: Mapping[str, TensorEntry],
    dtype: str,
    pieces: _Pieces,
    advance: _Advance,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Widest types first, so that every tensor is aligned without gaps, which the format forbids.
    order = sorted(entries, key=lambda name: -_item_bytes(entries[name], dtype))
    for name in order:
        entry = entries[name]
        end = offset + entry.size_bytes(FLOAT_BYTES[dtype])
        stored = dtype if entry.dtype == "float" else entry.dtype
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[stored],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        for piece in pieces(name):
            file.write(_as_bytes(piece))
        advance(entries[name].size_bytes(FLOAT_BYTES[dtype]))


def _item_bytes(entry: TensorEntry, dtype: str) -> int:
    return TensorEntry((), entry.kind, entry.dtype).size_bytes(FLOAT_BYTES[dtype])


# ---- program ------------------------------------------------------------------------------------


@contextmanager
def _progress_bar(total_bytes: int, enabled: bool) -> Iterator[_Advance]:
    """Gives a function to call with the bytes done; shows a bar on a terminal."""
    from tqdm import tqdm

    disable = None if enabled else True  # None: only where the output is a terminal
    with tqdm(total=total_bytes, unit="B", unit_scale=True, disable=disable) as bar:
        yield bar.update


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a random checkpoint as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.checkpoint",
        description="Write a random checkpoint in the published layout, for tests and benchmarks. "
        "The full model's (magma_v1_500) takes 13 GB.",
    )
    parser.add_argument("out", metavar="OUT", help="file to write, e.g. mp_rank_00_model_states.pt")
    parser.add_argument("--config", required=True, metavar="NAME", help="preset with the sizes")
    parser.add_argument("--seed", type=int, default=0, help="which numbers (default: 0)")
    parser.add_argument("--dtype", choices=tuple(FLOAT_BYTES), default="float16")
    parser.add_argument("--format", choices=FORMATS, help="default: by the name of OUT")
    arguments = parser.parse_args(argv)
    by_name = "safetensors" if arguments.out.endswith(".safetensors") else "pt"
    try:
        from config.parsing import load_preset

        write_random_checkpoint(
            arguments.out,
            load_preset(arguments.config),
            seed=arguments.seed,
            dtype=arguments.dtype,
            format=arguments.format or by_name,
            progress=True,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}: {Path(arguments.out).stat().st_size:,} bytes")
    return 0
