"""PopXL's data types and their counterparts in NumPy, torch and Python."""

from __future__ import annotations

import builtins
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from popart import DataType
from popart._internal import ir as _ir

np_dtype_float8_143 = np.dtype([("float8_143", "u1")])
np_dtype_float8_152 = np.dtype([("float8_152", "u1")])


@dataclass(frozen=True, slots=True)
class _Facts:
    """One row of the dtype table."""

    numpy: np.dtype
    is_int: builtins.bool = False
    is_float: builtins.bool = False
    is_complex: builtins.bool = False
    is_signed: builtins.bool = False
    torch: str | None = None
    python: type | None = None


_FACTS: dict[str, _Facts] = {
    "bool": _Facts(np.dtype(np.bool_), torch="bool", python=builtins.bool),
    **{
        f"int{bits}": _Facts(
            np.dtype(f"int{bits}"), is_int=True, is_signed=True, torch=f"int{bits}"
        )
        for bits in (8, 16, 32, 64)
    },
    "uint8": _Facts(np.dtype("uint8"), is_int=True, torch="uint8"),
    **{f"uint{bits}": _Facts(np.dtype(f"uint{bits}"), is_int=True) for bits in (16, 32, 64)},
    "float8_143": _Facts(np_dtype_float8_143, is_float=True, is_signed=True),
    "float8_152": _Facts(np_dtype_float8_152, is_float=True, is_signed=True),
    "float16": _Facts(np.dtype("float16"), is_float=True, is_signed=True, torch="float16"),
    "float32": _Facts(
        np.dtype("float32"), is_float=True, is_signed=True, torch="float32", python=builtins.float
    ),
    "float64": _Facts(np.dtype("float64"), is_float=True, is_signed=True, torch="float64"),
    "complex64": _Facts(np.dtype("complex64"), is_complex=True, is_signed=True, torch="complex64"),
    "complex128": _Facts(
        np.dtype("complex128"), is_complex=True, is_signed=True, torch="complex128"
    ),
}


class dtype:
    """A data type. Instances are singletons; look them up instead of constructing them."""

    _instances: ClassVar[dict[str, dtype]] = {}
    _name: str
    _facts: _Facts

    def __init__(self) -> None:
        raise TypeError(f"Cannot create {type(self).__module__}.dtype instances.")

    @classmethod
    def _make(cls, name: str) -> dtype:
        self = cls.__new__(cls)
        self._name = name
        self._facts = _FACTS[name]
        cls._instances[name] = self
        return self

    @property
    def name(self) -> str:
        """E.g. ``"float16"``."""
        return self._name

    @property
    def _pb_dtype(self) -> DataType:
        return _ir.data_type(self._name)

    @property
    def is_complex(self) -> builtins.bool:
        """Whether elements are complex numbers."""
        return self._facts.is_complex

    @property
    def is_int(self) -> builtins.bool:
        """Whether elements are integers (bool is not)."""
        return self._facts.is_int

    @property
    def is_floating_point(self) -> builtins.bool:
        """Whether elements are real floating-point numbers."""
        return self._facts.is_float

    @property
    def is_signed(self) -> builtins.bool:
        """Whether elements can be negative."""
        return self._facts.is_signed

    def __repr__(self) -> str:
        return f"popxl.dtypes.{self._name}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return dtype.from_name, (self._name,)

    @classmethod
    def as_dtype(cls, type_value: Any) -> dtype:
        """The dtype of a name, Python type, NumPy or torch dtype, or of something that has one.

        Raises:
            ValueError: nothing of the kind.
        """
        found = _lookup(type_value)
        if found is None and hasattr(type_value, "dtype"):
            found = _lookup(type_value.dtype)
        if found is None:
            raise ValueError(f"There is no `popxl.dtype` that is compatible with {type_value!r}")
        return found

    @classmethod
    def from_name(cls, name: str) -> dtype:
        """The dtype called ``name``; ValueError if there is none (aliases have no name)."""
        try:
            return cls._instances[name]
        except KeyError:
            raise ValueError(f"There is no `popxl.dtype` with the name '{name}'") from None

    def as_numpy(self) -> np.dtype:
        """The NumPy dtype; float8 types are structured with one uint8 field."""
        return self._facts.numpy

    def as_torch(self) -> Any:
        """The torch dtype; TypeError if torch has none."""
        if self._facts.torch is None:
            raise TypeError(f"Type {self} does not have a corresponding torch type.")
        import torch

        return getattr(torch, self._facts.torch)


def _lookup(value: Any) -> dtype | None:
    if isinstance(value, dtype):
        return None
    if isinstance(value, str) and value in dtype._instances:
        return dtype._instances[value]
    for found in dtype._instances.values():
        if found._facts.python is not None and value is found._facts.python:
            return found
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        return dtype._instances.get(name)
    try:
        wanted = np.dtype(value)
    except (TypeError, ValueError):
        return None
    for found in dtype._instances.values():
        if found._facts.numpy == wanted:
            return found
    return None


bool = dtype._make("bool")
int8 = dtype._make("int8")
int16 = dtype._make("int16")
int32 = dtype._make("int32")
int64 = dtype._make("int64")
uint8 = dtype._make("uint8")
uint16 = dtype._make("uint16")
uint32 = dtype._make("uint32")
uint64 = dtype._make("uint64")
float8_143 = dtype._make("float8_143")
float8_152 = dtype._make("float8_152")
float16 = dtype._make("float16")
float32 = dtype._make("float32")
float64 = dtype._make("float64")
complex64 = dtype._make("complex64")
complex128 = dtype._make("complex128")

half = float16
float = float32
double = float64
