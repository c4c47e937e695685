"""Model folders: the weights of a checkpoint laid out as they are run, mapped and never copied.

A folder is like one of Hugging Face: safetensors files with an index, the configuration and the
tokenizer. The files stand in the order of execution, one for each decoder block. In them

- a linear weight is (out, in), queries, keys and values lie together per head, and nothing is cut:
  a shard of any degree of tensor parallelism is a slice (:mod:`utils.folder_layout`);
- what one call of a phase loads, a *slab*, is contiguous and begins at a multiple of 4096 bytes,
  and each tensor at one of 64; tensors named ``__padding__`` fill the gaps, which the format
  forbids.

The index has the SHA-256 of every tensor and of the other files. A folder is complete or absent:
it is written under another name, beside which a journal keeps what is finished, so that a
conversion can go on after any end.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from config.parsing import from_mapping
from utils.checkpoint_files import open_tensors
from utils.errors import UserError
from utils.progress import Advance, byte_progress

FORMAT = 1
CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = {"float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
"""Types of weights, and numpy's type of the stored bytes."""

_READ_BYTES = 1 << 24


def verify_model_folder(folder: str | os.PathLike[str], progress: bool = False) -> int:
    """Reads every byte of a folder and compares it with the index's checksums.

    Returns:
        The number of tensors.

    Raises:
        UserError: the first that is wrong: a file that is missing, of another size or not what was
            written, a tensor whose numbers are not, or a folder without checksums.
    """
    folder = Path(folder)
    tensors = open_tensors(folder)
    index = _read_json(folder / INDEX_FILE)
    checksums = index.get("sha256")
    if not isinstance(checksums, dict) or set(checksums) != set(tensors):
        raise UserError(f"{folder / INDEX_FILE}: has no checksums, or not of all tensors")
    folder_config(folder)
    _verify_files(folder, index.get("files_sha256", {}))
    arrays = {name: tensor.stored() for name, tensor in tensors.items()}
    with byte_progress(sum(a.nbytes for a in arrays.values()), progress, "verifying") as advance:
        for name, array in arrays.items():
            found = _digest(array, advance)
            if found != checksums[name]:
                raise UserError(
                    f"{tensors[name].file}: the tensor {name} is damaged: its SHA-256 is {found}, "
                    f"expected {checksums[name]}; convert the checkpoint again"
                )
    return len(arrays)


def _verify_files(folder: Path, checksums: Any) -> None:
    """Compares configuration and tokenizer; folders of before say nothing of them."""
    if not isinstance(checksums, dict) or not all(Path(n).name == n for n in checksums):
        raise UserError(f"{folder / INDEX_FILE}: the checksums of files are damaged")
    for name, expected in checksums.items():
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise UserError(
                f"{folder / name}: cannot read the file: {error.strerror}; convert the checkpoint "
                "again"
            ) from error
        if found != expected:
            raise UserError(
                f"{folder / name}: is not what was written: its SHA-256 is {found}, expected "
                f"{expected}; convert the checkpoint again"
            )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_model_folder(path: Path) -> bool:
    """Whether a path is a finished model folder; no name is an error."""
    # Path.is_file raises for some names.
    return all(os.path.isfile(path / name) for name in (CONFIG_FILE, INDEX_FILE))  # noqa: PTH113


def folder_config(folder: Path) -> MagmaConfig:
    """The configuration that a model folder was written with.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    content = _read_json(path)
    if content.get("model_type") != "magma" or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: is no configuration of a model folder; expected model_type magma and format "
            f"{FORMAT}, found {content.get('model_type')!r} and {content.get('format')!r}"
        )
    config: MagmaConfig = from_mapping(MagmaConfig, content.get("config"), str(path))
    config.validate()
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged; expected JSON")
    return content


def _digest(array: npt.NDArray[Any], advance: Advance) -> str:
    digest = hashlib.sha256()
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _READ_BYTES):
        piece = flat[start : start + (_READ_BYTES)]
        digest.update(piece.data)
        advance(piece.size)
    return digest.hexdigest()
