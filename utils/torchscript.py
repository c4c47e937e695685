"""Tensors of TorchScript archives, such as OpenAI's files of CLIP, without running what is in them.

An archive is a zip file: ``data.pkl`` is a pickle of the module and its parts, which name the files
``data/<key>`` that hold the numbers; the program itself lies beside it. Only the first two are
read, and the unpickler here knows nothing but modules and tensors.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from utils.errors import UserError

_STORAGES = {
    "HalfStorage": ("float16", "<f2"),
    "BFloat16Storage": ("bfloat16", "<u2"),
    "FloatStorage": ("float32", "<f4"),
    "DoubleStorage": ("float64", "<f8"),
    "BoolStorage": ("bool", "|b1"),
    "ByteStorage": ("uint8", "|u1"),
    "CharStorage": ("int8", "|i1"),
    "ShortStorage": ("int16", "<i2"),
    "IntStorage": ("int32", "<i4"),
    "LongStorage": ("int64", "<i8"),
}


_MOST = 1 << 48
"""Elements: what no file holds, and no 64 bits of bytes overflow with."""


class ScriptTensor(NamedTuple):
    """Where a tensor lies: a member of the archive, and the numbers of it that are the tensor's.

    ``storage`` names its dtype, ``offset``, ``shape`` and ``strides`` count elements.
    """

    storage: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """The type's name, as torch's."""
        return _STORAGES[self.storage][0]


def is_torchscript(path: Path) -> bool:
    """Whether a zip file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
    except Exception:  # damaged directories raise many types; whoever reads the file tells more
        return False


def script_tensors(path: Path) -> dict[str, ScriptTensor]:
    """Parameters and buffers of an archive's module, by the names that a state dict has.

    Raises:
        UserError: damaged, or it holds something else than modules of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if PurePosixPath(n).name == "data.pkl")
            module = _Unpickler(BytesIO(archive.read(name))).load()
        tensors = dict(_walk(module, ""))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # unpickling damaged data raises many types
        raise UserError(
            f"{path}: the TorchScript archive is damaged ({type(error).__name__})"
        ) from error
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return tensors


def read_script_tensor(path: Path, tensor: ScriptTensor) -> npt.NDArray[Any]:
    """The numbers of a tensor, as stored; the bits of bfloat16 come as uint16.

    Raises:
        UserError: its member is missing or too short.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(f"/data/{tensor.key}"))
            numbers = np.frombuffer(archive.read(name), _STORAGES[tensor.storage][1])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the archive's data/{tensor.key} is damaged") from error
    last = sum(stride * (n - 1) for stride, n in zip(tensor.strides, tensor.shape, strict=True))
    if 0 not in tensor.shape and not 0 <= tensor.offset <= len(numbers) - 1 - last:
        raise UserError(f"{path}: the archive's data/{tensor.key} is too short")
    steps = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, steps, writeable=False
    )


class _Module:
    """A module of the archive: its attributes by name."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state)


def _tensor(
    storage: tuple[Any, ...], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> ScriptTensor:
    _, kind, key, *_ = storage
    numbers = (offset, *shape, *strides)
    if kind not in _STORAGES or not all(type(n) is int and 0 <= n < _MOST for n in numbers):
        raise UserError("a tensor of the TorchScript archive is damaged or of an unknown type")
    if len(shape) != len(strides):
        raise UserError("a tensor of the TorchScript archive is damaged")
    return ScriptTensor(kind, str(key), offset, tuple(shape), tuple(strides))


def _same(value: Any, *_: Any) -> Any:
    return value


class _Unpickler(pickle.Unpickler):
    """Makes modules and tensors; every other name in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":  # marks of the types of lists
            return _same
        raise UserError(f"refused: the TorchScript archive asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _walk(module: Any, prefix: str) -> Iterator[tuple[str, ScriptTensor]]:
    if not isinstance(module, _Module):
        return
    for name, value in module.attributes.items():
        if isinstance(value, ScriptTensor):
            yield f"{prefix}{name}", value
        else:
            yield from _walk(value, f"{prefix}{name}.")
