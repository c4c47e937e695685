"""Products with half-precision weights, attention of few queries and rotary positions in C++
(gemm.cpp), where the library was built.

The library is built when the runtime is installed, if there is a compiler; without it, on other
processors, or with ``POPXL_TORCH_NATIVE=0``, :func:`native` is None and torch does the work. The
variable is read once. It may also name an instruction set (``avx2``, ``avx512``) to use instead of
the best one, for tests and comparisons.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

SWITCH = "POPXL_TORCH_NATIVE"
VERSION = 5
"""What popxl_native_version() of a library that fits this file answers."""

STORED = (torch.float16, torch.bfloat16)
"""Dtypes of weights that the library reads."""

ATTENDED = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.int8: 3}
"""Dtypes of keys and values that it reads, with their numbers."""

MASKS = {None: 0, "visible": 1, "hidden": 2, "added": 3}
"""What a mask may mean (see passes/fuse_attention.py), with numbers."""

SERIAL_BELOW = 1 << 19
"""Elements of a weight, times rows, under which waking a second thread costs more than it saves."""

_Functions = dict[str, Callable[..., Any]]
_OFF = ("0", "off", "false")
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_MATRICES = (_POINTER, _LONG) * 3
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (_INT, ()),
    "set": (ctypes.c_char_p, (_INT,)),
    "here": (_INT, (_INT,)),
    "scratch": (_LONG, (_INT, _LONG, _LONG, _LONG, _INT)),
    "dot": (None, (_INT, _INT, _LONG, _LONG, _LONG, *_MATRICES, _INT, _POINTER)),
    "tiles": (None, (_INT, _INT, _LONG, _LONG, _LONG, *_MATRICES, _POINTER, _INT, _POINTER)),
    "dot8": (
        None,
        (_INT, *(_LONG,) * 3, *(_POINTER, _LONG) * 2, _POINTER, _POINTER, _LONG, _INT, _POINTER),
    ),
    "dot4": (None, (_INT, *(_LONG,) * 3, *(_POINTER, _LONG) * 4, _POINTER, _INT, _POINTER)),
    "widen8": (None, (_INT, *(_LONG,) * 2, _POINTER, _LONG, *(_POINTER,) * 2, _INT, _POINTER)),
    "widen4": (None, (_INT, *(_LONG,) * 2, *(_POINTER, _LONG) * 2, _POINTER, _INT, _POINTER)),
    "room": (_LONG, (_INT, _LONG, _LONG)),
    "attend": (None, (_INT, *(_POINTER,) * 9)),
    "rotate": (None, (_POINTER,) * 5),
}


class Attention(ctypes.Structure):
    """What does not change from call to call of ``attend``: sizes; four strides (three outer axes
    and rows) each of q, k, v, y, the scales of k and v, and the mask, and that of the mask's
    columns."""

    _fields_ = (
        ("sizes", _LONG * 7),
        ("strides", _LONG * 29),
        ("type", _LONG),
        ("mask", _LONG),
        ("scale", ctypes.c_double),
        ("fill", ctypes.c_double),
        ("threads", _LONG),
        ("fork", _POINTER),
        ("pointers", _POINTER * 8),
    )


class Rotation(ctypes.Structure):
    """What does not change from call to call of ``rotate``."""

    _fields_ = (
        ("size", _LONG * 5),
        ("d", _LONG),
        ("pairs", _LONG),
        ("halves", _LONG),
        ("strides", _LONG * 11),
    )


@dataclass(frozen=True, slots=True)
class Native:
    """The library with one of its instruction sets.

    Attributes:
        name: the instruction set.
        index: its number.
        functions: the library's functions by name, without their prefix.
        fork: address of GOMP_parallel in the OpenMP library that torch uses, or None.
    """

    name: str
    index: int
    functions: _Functions
    fork: int | None

    def dot(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """``x @ w.T``, for few rows; a row's result does not depend on how many there are.

        Args:
            x: (m, k) float32, rows contiguous.
            w: (n, k) of a dtype in :data:`STORED`, rows contiguous, any distance between them.

        Returns:
            (m, n) float32.
        """
        y = torch.empty(x.shape[0], w.shape[0], dtype=torch.float32)
        self.functions["dot"](*self._arguments(x, w, y), _threads(x, w), self.fork)
        return y

    def tiles(self, x: torch.Tensor, w: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        """:meth:`dot` for many rows, with memory of :meth:`scratch_size` floats."""
        y = torch.empty(x.shape[0], w.shape[0], dtype=torch.float32)
        arguments = self._arguments(x, w, y)
        self.functions["tiles"](*arguments, scratch.data_ptr(), _threads(x, w), self.fork)
        return y

    def scratch_size(self, x: torch.Tensor, w: torch.Tensor) -> int:
        """Floats of memory that :meth:`tiles` needs."""
        (m, k), n = x.shape, w.shape[0]
        size: int = self.functions["scratch"](self.index, m, n, k, _threads(x, w))
        return size

    def _arguments(self, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[int, ...]:
        (m, n), k = y.shape, x.shape[1]
        brain = w.dtype == torch.bfloat16
        rows = (x.data_ptr(), x.stride(0), w.data_ptr(), w.stride(0), y.data_ptr(), n)
        return (self.index, brain, m, n, k, *rows)


def threads_for(products: int) -> int:
    """Threads for so many products."""
    return 1 if products < SERIAL_BELOW else torch.get_num_threads()


def _threads(x: torch.Tensor, w: torch.Tensor) -> int:
    return threads_for(x.shape[0] * w.numel())


@cache
def native() -> Native | None:
    """The library, if it is there, wanted, and the processor has one of its instruction sets."""
    wanted = os.environ.get(SWITCH, "").lower()
    path = library_path()
    if wanted in _OFF or path is None:
        return None
    functions = _load(path)
    if functions is None:
        return None
    only = "" if wanted in ("", "1", "on", "true") else wanted
    names = _sets(functions)
    if only and only not in names:
        raise ValueError(f"{SWITCH} is {wanted!r}; here it may be 0, 1 or one of {tuple(names)}.")
    for name, index in names.items():
        if not only or name == only:
            return Native(name, index, functions, _fork())
    return None


def library_path() -> Path | None:
    """The built library beside this file."""
    files = (Path(__file__).with_name(f"_gemm{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in files if path.is_file()), None)


def _load(path: Path) -> _Functions | None:
    """The library's functions; None for one of other sources than these, or for other machines."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    functions: _Functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"popxl_native_{name}", None)
        if function is None:
            return None
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions if functions["version"]() == VERSION else None


def _sets(functions: _Functions) -> dict[str, int]:
    """Instruction sets of this processor, best first, with their numbers."""
    found, index = {}, 0
    while name := functions["set"](index):
        if functions["here"](index):
            found[name.decode()] = index
        index += 1
    return found


def _fork() -> int | None:
    # A symbol is looked up in a library and all that it depends on: this is torch's own OpenMP.
    torch_library = ctypes.CDLL(torch._C.__file__)
    function = getattr(torch_library, "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value
