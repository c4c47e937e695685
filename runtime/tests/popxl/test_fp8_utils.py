"""float8 on the host against torch's types of the same formats."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl.fp8_utils import host_pow2scale_cast_from_fp8, host_pow2scale_cast_to_fp8

TWINS = {popxl.float8_143: torch.float8_e4m3fnuz, popxl.float8_152: torch.float8_e5m2fnuz}
LARGEST = {popxl.float8_143: 240.0, popxl.float8_152: 57344.0}
SOURCES = {np.float16: popxl.float16, np.float32: popxl.float32, np.float64: popxl.float64}
FORMATS = pytest.mark.parametrize("dtype", list(TWINS), ids=lambda dtype: dtype.name)


def codes_of(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


@FORMATS
@pytest.mark.parametrize("scale", [-4, 0, 3])
@pytest.mark.parametrize("target", SOURCES)
def test_decoding(dtype: popxl.dtype, scale: int, target: type):
    codes = np.arange(256, dtype=np.uint8)
    wanted = torch.from_numpy(codes).view(TWINS[dtype]).double().numpy() * 2.0**scale
    found = host_pow2scale_cast_from_fp8(codes.view(dtype.as_numpy()), SOURCES[target], scale)
    assert found.dtype == target
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, wanted.astype(target))


@FORMATS
@pytest.mark.parametrize("scale", [-4, 0, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_encoding(dtype: popxl.dtype, scale: int, source: type, rng: Generator):
    largest = min(LARGEST[dtype] * 2.0**-scale, float(np.finfo(source).max))
    x = rng.uniform(-largest, largest, size=(20, 30)) * 10.0 ** rng.uniform(-6, 0, size=(20, 30))
    x = x.astype(source)
    found = host_pow2scale_cast_to_fp8(x, dtype, scale)
    scaled = torch.from_numpy((x.astype(np.float64) * 2.0**scale).astype(np.float32))
    assert found.shape == x.shape
    wanted = scaled.to(TWINS[dtype]).view(torch.uint8).numpy()
    np.testing.assert_array_equal(codes_of(found), wanted)


@FORMATS
def test_out_of_range(dtype: popxl.dtype):
    x = np.array([2.0, -2.0]) * LARGEST[dtype]
    as_nan = host_pow2scale_cast_to_fp8(x, dtype)
    saturated = host_pow2scale_cast_to_fp8(x, dtype, nan_on_overflow=False)
    np.testing.assert_array_equal(codes_of(as_nan), [0x80, 0x80])
    np.testing.assert_array_equal(codes_of(saturated), [0x7F, 0xFF])


@FORMATS
def test_negative_values_that_vanish_are_zero_not_nan(dtype: popxl.dtype):
    found = host_pow2scale_cast_to_fp8(np.array([-1e-30, -0.0]), dtype)
    np.testing.assert_array_equal(codes_of(found), [0, 0])


def test_wrong_dtypes():
    with pytest.raises(RuntimeError, match="Cannot cast"):
        host_pow2scale_cast_to_fp8(np.arange(3), popxl.float8_143)
    with pytest.raises(RuntimeError, match="Cannot cast"):
        host_pow2scale_cast_to_fp8(np.ones(3), popxl.float16)
    with pytest.raises(RuntimeError, match="Cannot cast"):
        host_pow2scale_cast_from_fp8(np.ones(3), popxl.float16)
