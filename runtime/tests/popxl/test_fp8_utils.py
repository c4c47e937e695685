"""float8 on the host: every code, rounding, and what is out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import fp8_utils
from popxl.fp8_utils import (
    host_fp8_mse_scale,
    host_fp8_mse_scale_pb,
    host_pow2scale_cast_from_fp8,
    host_pow2scale_cast_to_fp8,
)

LARGEST = {"float8_143": 240.0, "float8_152": 57344.0}
SMALLEST = {"float8_143": 2.0**-10, "float8_152": 2.0**-17}  # subnormal steps
FORMATS = [popxl.float8_143, popxl.float8_152]


def all_values(dtype: popxl.dtype) -> np.ndarray:
    """The value of each of the 256 codes."""
    codes = np.arange(256, dtype=np.uint8).view(dtype.as_numpy())
    return host_pow2scale_cast_from_fp8(codes, popxl.float64)


@pytest.mark.parametrize("dtype", FORMATS)
def test_codes(dtype: popxl.dtype):
    values = all_values(dtype)
    assert np.isnan(values[0x80])
    positive, negative = values[:0x80], values[0x81:]
    assert np.all(np.diff(positive) > 0)
    np.testing.assert_array_equal(negative, -positive[1:])
    assert (positive[0], positive[1]) == (0.0, SMALLEST[dtype.name])
    assert positive[-1] == LARGEST[dtype.name]


@pytest.mark.parametrize("dtype", FORMATS)
def test_values_come_back(dtype: popxl.dtype):
    values = all_values(dtype)
    codes = host_pow2scale_cast_to_fp8(values, dtype)
    np.testing.assert_array_equal(codes[dtype.name], np.arange(256))


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", FORMATS)
def test_rounds_to_the_nearest_value(rng: Generator, dtype: popxl.dtype, source: type):
    x = (rng.normal(size=(40, 50)) * 10 ** rng.uniform(-4, 1.5, (40, 50))).astype(source)
    found = host_pow2scale_cast_from_fp8(host_pow2scale_cast_to_fp8(x, dtype), popxl.float64)
    values = np.delete(all_values(dtype), 0x80)
    nearest = np.abs(x.astype(np.float64)[..., None] - values).min(-1)
    np.testing.assert_array_equal(np.abs(found - x.astype(np.float64)), nearest)


@pytest.mark.parametrize("dtype", FORMATS)
def test_ties_go_to_even_codes(dtype: popxl.dtype):
    values = all_values(dtype)[:0x80]
    halfway = (values[:-1] + values[1:]) / 2
    codes = host_pow2scale_cast_to_fp8(halfway, dtype)[dtype.name]
    low = np.arange(127)
    np.testing.assert_array_equal(codes, low + low % 2)


@pytest.mark.parametrize("dtype", FORMATS)
def test_out_of_range(dtype: popxl.dtype):
    largest = LARGEST[dtype.name]
    x = np.array([2 * largest, -2 * largest, np.inf, np.nan])
    to_nan = host_pow2scale_cast_to_fp8(x, dtype)[dtype.name]
    np.testing.assert_array_equal(to_nan, [0x80] * 4)
    saturated = host_pow2scale_cast_from_fp8(
        host_pow2scale_cast_to_fp8(x, dtype, nan_on_overflow=False), popxl.float32
    )
    np.testing.assert_array_equal(saturated, [largest, -largest, largest, np.nan])


@pytest.mark.parametrize("dtype", FORMATS)
def test_scales_multiply(rng: Generator, dtype: popxl.dtype):
    x = rng.integers(1, 8, 20).astype(np.float32)
    np.testing.assert_array_equal(
        host_pow2scale_cast_to_fp8(x, dtype, 3), host_pow2scale_cast_to_fp8(8 * x, dtype)
    )
    back = host_pow2scale_cast_from_fp8(host_pow2scale_cast_to_fp8(x, dtype, 3), popxl.float32, -3)
    np.testing.assert_array_equal(back, x)


def test_no_negative_zero():
    codes = host_pow2scale_cast_to_fp8(np.array([-0.0, -1e-9]), popxl.float8_143)
    np.testing.assert_array_equal(codes["float8_143"], [0, 0])


def test_other_types_are_rejected():
    floats = np.ones(2, np.float32)
    with pytest.raises(RuntimeError):
        host_pow2scale_cast_to_fp8(floats, popxl.float16)
    with pytest.raises(RuntimeError):
        host_pow2scale_cast_to_fp8(np.ones(2, np.int32), popxl.float8_143)
    with pytest.raises(RuntimeError):
        host_pow2scale_cast_from_fp8(floats, popxl.float32)


def squared_error(x: np.ndarray, dtype: popxl.dtype, scale: int) -> float:
    codes = host_pow2scale_cast_to_fp8(x, dtype, scale, nan_on_overflow=False)
    back = host_pow2scale_cast_from_fp8(codes, popxl.float64, -scale)
    return float(np.mean((back - x.astype(np.float64)) ** 2))


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("exponent", [-12, 0, 7])
def test_the_scale_with_the_least_error(
    rng: Generator, dtype: popxl.dtype, source: type, exponent: int
):
    x = (rng.normal(size=(60, 50)) * 2.0**exponent).astype(source)
    errors = {scale: squared_error(x, dtype, scale) for scale in range(-31, 32)}
    metric, scale = host_fp8_mse_scale(x, dtype)
    assert errors[scale] <= 1.01 * min(errors.values())
    assert metric == pytest.approx(errors[scale], rel=0.05)
    assert host_fp8_mse_scale_pb(x, dtype) == scale
    assert errors[scale] < 0.1 * errors[31]


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_nothing_to_scale(value: float):
    assert host_fp8_mse_scale(np.full(3, value, np.float32), popxl.float8_152) == (0.0, 0)


def test_no_values():
    assert host_fp8_mse_scale_pb(np.zeros((0, 2), np.float32), popxl.float8_143) == 0


@pytest.mark.parametrize(
    ("dtype", "source"), [(popxl.float16, np.float32), (None, np.float32), (FORMATS[0], np.int32)]
)
def test_scales_of_other_types(dtype: popxl.dtype | None, source: type):
    for find in (host_fp8_mse_scale, host_fp8_mse_scale_pb):
        with pytest.raises(RuntimeError):
            find(np.ones(2, source), dtype)


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (fp8_utils.float8_143_def, (-10, 7)),
        (fp8_utils.float8_152_def, (-17, 15)),
        (fp8_utils.ieee_fp16_denorms, (-24, 15)),
        (fp8_utils.ieee_fp32_no_denorms, (-126, 127)),
    ],
)
def test_exponents_of_a_format(definition: Any, expected: tuple[int, int]):
    assert fp8_utils.find_exponential_range(definition) == expected


def test_a_format_against_another():
    """float8's powers of two, from the least scale to the greatest, among those of float32."""
    made = fp8_utils.CandidateConfig(
        "float8_143", fp8_utils.ieee_fp32_no_denorms, fp8_utils.float8_143_def, np.float32
    )
    assert vars(made) == {
        "format": "float8_143",
        "exponent_size": 4,
        "mantissa_size": 3,
        "fix_exponent_bias": 8,
        "quantisation_error": 2.0**-40,
        "format_span": 18,
        "num_exp_src": 254,
        "min_src_exp_index": 85,
        "max_src_exp_index": 147,
    }


def test_histogram():
    x = np.array([0.0, 1.0, -1.5, 1.99, 2.0, np.inf, np.nan, 60000.0])
    counts, limits = fp8_utils.log_histogram(x, fp8_utils.ieee_fp16_denorms)
    assert counts.sum() == 5
    assert len(limits) == len(counts) + 1
    assert counts[(limits[:-1] >= 1) & (limits[:-1] < 2)].sum() == 3
