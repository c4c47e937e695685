"""popxl.dtype: the table of properties, and lookups."""

from __future__ import annotations

import builtins
import copy
import pickle
from typing import Any

import numpy as np
import popxl
import pytest
import torch
from popxl import dtypes
from popxl.testing import get_all_dtypes, get_all_int_dtypes

# name: is_int, is_floating_point, is_complex, is_signed, torch has it
TABLE = {
    "bool": (False, False, False, False, True),
    **{f"int{n}": (True, False, False, True, True) for n in (8, 16, 32, 64)},
    "uint8": (True, False, False, False, True),
    **{f"uint{n}": (True, False, False, False, False) for n in (16, 32, 64)},
    **{f"float8_{n}": (False, True, False, True, False) for n in (143, 152)},
    **{f"float{n}": (False, True, False, True, True) for n in (16, 32, 64)},
    **{f"complex{n}": (False, False, True, True, True) for n in (64, 128)},
}


@pytest.mark.parametrize("name", TABLE)
def test_properties(name: str):
    dtype = getattr(popxl, name)
    found = (dtype.is_int, dtype.is_floating_point, dtype.is_complex, dtype.is_signed)
    assert found == TABLE[name][:4]
    assert dtype.name == name
    assert repr(dtype) == f"popxl.dtypes.{name}"
    assert popxl.dtype.from_name(name) is dtype
    assert popxl.dtype.as_dtype(name) is dtype
    assert getattr(dtypes, name) is dtype


@pytest.mark.parametrize("name", TABLE)
def test_numpy(name: str):
    dtype = getattr(popxl, name)
    if name.startswith("float8"):
        assert dtype.as_numpy() == np.dtype([(name, "u1")])
        assert dtype.as_numpy() == getattr(dtypes, f"np_dtype_{name}")
    else:
        assert dtype.as_numpy() == np.dtype(name)
    assert popxl.dtype.as_dtype(dtype.as_numpy()) is dtype


@pytest.mark.parametrize("name", TABLE)
def test_torch(name: str):
    dtype = getattr(popxl, name)
    if TABLE[name][4]:
        assert dtype.as_torch() is getattr(torch, name)
        assert popxl.dtype.as_dtype(getattr(torch, name)) is dtype
    else:
        with pytest.raises(TypeError):
            dtype.as_torch()


def test_aliases():
    assert popxl.half is popxl.float16
    assert popxl.float is popxl.float32
    assert popxl.double is popxl.float64


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (builtins.bool, popxl.bool),
        (builtins.float, popxl.float32),
        (int, popxl.int64),
        (None, popxl.float64),
        ("f4", popxl.float32),
        ("half", popxl.float16),
        (np.float16, popxl.float16),
        (np.zeros(1, "uint8"), popxl.uint8),
        (np.float64(1), popxl.float64),
        (torch.zeros(1, dtype=torch.int16), popxl.int16),
    ],
    ids=str,
)
def test_as_dtype(value: Any, wanted: popxl.dtype):
    assert popxl.dtype.as_dtype(value) is wanted


@pytest.mark.parametrize(
    "value", [popxl.float32, "float31", "float", 3, object(), {"a": 1}, torch.bfloat16, [1, 2]]
)
def test_as_dtype_of_other_values(value: Any):
    if value == "float":  # NumPy's name for float64
        assert popxl.dtype.as_dtype(value) is popxl.float64
        return
    with pytest.raises(ValueError, match="compatible"):
        popxl.dtype.as_dtype(value)


def test_as_dtype_of_a_tensor(main: popxl.Graph):
    with pytest.raises(ValueError, match="compatible"):
        popxl.dtype.as_dtype(popxl.constant(1))


@pytest.mark.parametrize("name", ["half", "float", "double", "nothing"])
def test_from_name_of_other_names(name: str):
    with pytest.raises(ValueError, match=name):
        popxl.dtype.from_name(name)


def test_singletons():
    with pytest.raises(TypeError):
        popxl.dtype()
    assert copy.deepcopy(popxl.float16) is popxl.float16
    assert pickle.loads(pickle.dumps(popxl.float16)) is popxl.float16


def test_lists_of_dtypes():
    assert len(get_all_dtypes()) == 15
    assert popxl.bool not in get_all_dtypes()
    assert len(get_all_int_dtypes()) == 8
    assert len(get_all_int_dtypes(include_signed=False)) == 4
    assert all(d.is_signed for d in get_all_int_dtypes(include_unsigned=False))
    assert get_all_int_dtypes(False, False) == []
