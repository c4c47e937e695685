"""Files of tensors, opened lazily: PyTorch zip files, safetensors, their indexes and folders.

Nothing here knows MAGMA. `open_tensors` gives every tensor of a checkpoint under the name that its
file uses, as a record that maps the bytes when asked. A PyTorch file is a pickle and may come from
anywhere, so it is only ever loaded with ``weights_only=True``.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from utils.errors import UserError
from utils.torchscript import ScriptTensor, is_torchscript, read_script_tensor, script_tensors

if TYPE_CHECKING:
    import torch

PUBLISHED_FILE = "mp_rank_00_model_states.pt"

CONVERSION_FILE = "conversion.json"
"""In a folder that is being written: what is finished."""

_FOLDER_FILES = (
    PUBLISHED_FILE,
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_TORCH_SUFFIXES = (".pt", ".bin", ".pth")
_MAX_HEADER_BYTES = 100_000_000
_SAFETENSORS_DTYPES = {
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
    "BOOL": ("bool", "|b1"),
    "U8": ("uint8", "|u1"),
    "I8": ("int8", "|i1"),
    "I16": ("int16", "<i2"),
    "I32": ("int32", "<i4"),
    "I64": ("int64", "<i8"),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        file: where it is stored.
        shape: as stored.
        dtype: the stored type's name: float16, bfloat16, float32, bool, ...
        identity: equal for two tensors that are the same bytes seen in the same way.
        stored: gives the array as it is stored, a read-only view of the mapped file; the bits of
            bfloat16 come as uint16.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    identity: tuple[object, ...]
    stored: Callable[[], npt.NDArray[Any]]

    def read(self) -> npt.NDArray[Any]:
        """The array, read-only: as stored, except that bfloat16 and float64, which models here do
        not use, are converted to a float32 copy."""
        array = self.stored()
        if self.dtype == "bfloat16":
            array = np.asarray(array.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "float64":
            array = array.astype(np.float32)
        array.flags.writeable = False
        return array


def open_tensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint at ``path``, by the names that the files use.

    Args:
        path: a PyTorch file, a safetensors file, an index of either, or a folder that holds one.

    Raises:
        UserError: the path is missing or unreadable, or is no checkpoint.
    """
    found = find_checkpoint(Path(path))
    if found.name.endswith(".index.json"):
        return _read_index(found)
    return _read_file(found)


def find_checkpoint(path: Path) -> Path:
    """The file or index that ``path`` means; a folder is searched for the usual names."""
    try:
        if path.is_dir():
            return _search_folder(path)
        if path.is_file():
            return path
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    what = "it is neither a file nor a folder" if exists else "no such file or folder"
    raise UserError(f"{path}: cannot read the checkpoint: {what}")


def _search_folder(folder: Path) -> Path:
    if (folder / CONVERSION_FILE).exists():
        raise UserError(
            f"{folder}: is an unfinished model folder; run execution.convert again to finish it"
        )
    latest = folder / "latest"
    if latest.is_file():
        # DeepSpeed keeps the newest checkpoint's folder name in this file.
        tag = latest.read_text(errors="replace").strip()
        if tag and _is_plain_name(tag) and (folder / tag).is_dir():
            return _search_folder(folder / tag)
    if (folder / "mp_rank_01_model_states.pt").exists():
        raise UserError(
            f"{folder}: the checkpoint is split over several model-parallel ranks "
            "(mp_rank_01_model_states.pt); expected one file: merge it first"
        )
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    suffixes = (".safetensors", *_TORCH_SUFFIXES)
    candidates = sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(p.name for p in candidates[:3])
        raise UserError(
            f"{folder}: holds {len(candidates)} checkpoint files ({names}) and no index; name one"
        )
    raise UserError(f"{folder}: holds no checkpoint; looked for {', '.join(_FOLDER_FILES)}")


def _is_plain_name(name: object) -> bool:
    """Whether a name from a file stays inside the folder that it is joined to."""
    return isinstance(name, str) and Path(name).name == name != ".." and "\\" not in name


def _read_file(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            start = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
        return _read_torch(path)
    raise UserError(f"{path}: is no checkpoint: {_guess_content(start, size)}")


def _guess_content(start: bytes, size: int) -> str:
    text = start.lstrip().lower()
    if size == 0:
        return "the file is empty; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the real file with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file itself"
    if start.startswith(b"\x80"):
        return "it is a bare pickle (PyTorch before 1.6); load and save it again with torch.save"
    return "expected a PyTorch zip file, a .safetensors file or an .index.json"


def _read_index(path: Path) -> dict[str, StoredTensor]:
    try:
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
    except OSError as error:
        raise UserError(f"{path}: cannot read the index: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
        raise UserError(
            f'{path}: is no checkpoint index; expected JSON with "weight_map": '
            "tensor names to names of files beside it"
        )
    files: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, file in weight_map.items():
        if file not in files:
            if not (path.parent / file).is_file():
                raise UserError(f"{path}: names {file}, which is missing; put it beside the index")
            files[file] = _read_file(path.parent / file)
        if name not in files[file]:
            raise UserError(f"{path}: says that {name} is in {file}, which lacks it")
        tensors[name] = files[file][name]
    return tensors


# ---- PyTorch ------------------------------------------------------------------------------------


def _read_torch(path: Path) -> dict[str, StoredTensor]:
    import torch

    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: the file is cut short or damaged (its zip directory is missing); "
            "download it again"
        )
    if is_torchscript(path):
        return {name: _script_tensor(path, t) for name, t in script_tensors(path).items()}
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many types for damaged files
        raise UserError(f"{path}: {_explain_torch_error(error)}") from error
    state = _state_dict(path, loaded)
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            kind = type(value).__name__
            raise UserError(f"{path}: {name!r} is of type {kind}; expected a plain tensor")
        if value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{path}: {name!r} is quantised or has no data; expected plain numbers")
        tensors[str(name)] = _torch_tensor(path, value.detach())
    return tensors


def _explain_torch_error(error: Exception) -> str:
    text = str(error)
    forbidden = re.search(r"GLOBAL `?([\w.]+)|`?([\w.]+)`? was not an allowed global", text)
    if forbidden:
        name = forbidden[1] or forbidden[2]
        return (
            f"refused: the file asks to run {name} while loading, which plain weights never do; "
            "use a file from a source you trust that holds tensors only"
        )
    if "subdirectory" in text or "data.pkl" in text or "invalid header" in text:
        return "is a zip file but no PyTorch checkpoint"
    if "Weights only load failed" in text:
        return "its directory of tensors is damaged, or holds more than tensors; download it again"
    first_line = (text.splitlines() or [""])[0][:200]
    reason = f"{type(error).__name__}: {first_line}"
    return f"the file is damaged or no PyTorch checkpoint ({reason}); download it again"


def _state_dict(path: Path, loaded: object) -> Mapping[Any, Any]:
    """The name-to-tensor level, with or without DeepSpeed's or open_clip's level above it."""
    for level in ("module", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(level), Mapping):
            loaded = loaded[level]
    if not isinstance(loaded, Mapping):
        raise UserError(
            f"{path}: holds a {type(loaded).__name__}; expected a dict of tensors, "
            'or one with such a dict under "module"'
        )
    if not loaded:
        raise UserError(f"{path}: holds no tensors")
    return loaded


def _torch_tensor(path: Path, value: torch.Tensor) -> StoredTensor:
    import torch

    def stored() -> npt.NDArray[Any]:
        bits = value.view(torch.uint16) if value.dtype == torch.bfloat16 else value
        array = bits.numpy()
        array.flags.writeable = False
        return array

    shape = tuple(value.shape)
    dtype = str(value.dtype).removeprefix("torch.")
    identity = (value.data_ptr(), shape, value.stride(), dtype)
    return StoredTensor(path, shape, dtype, identity, stored)


def _script_tensor(path: Path, tensor: ScriptTensor) -> StoredTensor:
    def stored() -> npt.NDArray[Any]:
        return read_script_tensor(path, tensor)

    return StoredTensor(path, tensor.shape, tensor.dtype, (path, *tensor), stored)


# ---- safetensors --------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    start, header = _safetensors_header(path, size)
    header.pop("__metadata__", None)
    if not header:
        raise UserError(f"{path}: holds no tensors")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    end = max(_last_byte(path, name, row) for name, row in header.items())
    if start + end != size:
        what = "the file is cut short" if start + end > size else "the file is longer than it says"
        raise UserError(
            f"{path}: {what}: its header promises {start + end:,} bytes, there are {size:,}; "
            "download it again"
        )
    return {name: _safetensors_tensor(path, mapped, start, row) for name, row in header.items()}


def _safetensors_header(path: Path, size: int) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the table of tensors."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if size == 0:
            raise UserError(f"{path}: is no checkpoint: {_guess_content(b'', size)}")
        readable = 2 <= length <= min(size - 8, _MAX_HEADER_BYTES)
        text = file.read(length) if readable else b""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        start = prefix + text[:56]
        raise UserError(
            f"{path}: is no safetensors file, or is cut short: its header is unreadable "
            f"({_guess_content(start, size)})"
        )
    return 8 + length, header


def _last_byte(path: Path, name: str, row: object) -> int:
    """Checks one row of the header; returns where its data ends."""
    try:
        begin, end = row["data_offsets"]  # type: ignore[index]
        shape = row["shape"]  # type: ignore[index]
        item_bytes = np.dtype(_SAFETENSORS_DTYPES[row["dtype"]][1]).itemsize  # type: ignore[index]
        sizes = [begin, end, *shape]
        sound = all(type(n) is int and n >= 0 for n in sizes)
        sound = sound and end - begin == math.prod(shape) * item_bytes
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        text = str(row)[:120]
        raise UserError(f"{path}: the header's row of {name!r} is damaged or unknown: {text}")
    return int(end)


def _safetensors_tensor(
    path: Path, mapped: np.memmap[Any, Any], start: int, row: Mapping[str, Any]
) -> StoredTensor:
    dtype, code = _SAFETENSORS_DTYPES[row["dtype"]]
    shape = tuple(row["shape"])
    begin, end = (start + offset for offset in row["data_offsets"])

    def stored() -> npt.NDArray[Any]:
        array = np.asarray(mapped[begin:end]).view(code).reshape(shape)
        array.flags.writeable = False
        return array

    return StoredTensor(path, shape, dtype, (path, begin, shape, dtype), stored)


def same_content(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers; bytes that are shared are not read."""
    if first.identity == second.identity:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    left, right = first.read().reshape(-1), second.read().reshape(-1)
    step = 1 << 22
    return all(
        _same_values(left[i : i + step], right[i : i + step]) for i in range(0, left.size, step)
    )


def _same_values(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    return left.tobytes() == right.tobytes()
