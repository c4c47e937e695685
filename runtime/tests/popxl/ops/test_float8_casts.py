"""Casts to and from float8 on the device."""

from __future__ import annotations

import numpy as np
import popart
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, run_replicas, tensor

# torch's types without infinities and negative zero are the same formats.
TWINS = {popxl.float8_143: torch.float8_e4m3fnuz, popxl.float8_152: torch.float8_e5m2fnuz}
LARGEST = {popxl.float8_143: 240.0, popxl.float8_152: 57344.0}
FORMATS = pytest.mark.parametrize("dtype", list(TWINS), ids=lambda dtype: dtype.name)


def all_codes(dtype: popxl.dtype) -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(dtype.as_numpy())


def decoded(codes: np.ndarray, dtype: popxl.dtype) -> np.ndarray:
    values = torch.from_numpy(codes.view(np.uint8).copy()).view(TWINS[dtype]).float()
    values[values.isnan()] = torch.nan  # quiet: NumPy warns of signalling ones
    return values.numpy()


def to_float8(dtype: popxl.dtype, scale: int):
    return lambda t: ops.pow2scale_cast_to_fp8(t, popxl.constant(scale), dtype)


@FORMATS
@pytest.mark.parametrize("scale", [-3, 0, 5])
def test_every_code_has_the_value_of_its_format(dtype: popxl.dtype, scale: int):
    codes = all_codes(dtype)

    def build(t: popxl.Tensor) -> popxl.Tensor:
        return ops.pow2scale_cast_from_fp8(t, popxl.constant(scale), popxl.float32)

    (found,) = run_ops(build, codes)
    np.testing.assert_array_equal(found, decoded(codes, dtype) * 2.0**scale)
    assert np.isnan(found[0x80])
    assert np.nanmax(found) == LARGEST[dtype] * 2.0**scale


@FORMATS
@pytest.mark.parametrize("scale", [-2, 0, 4])
@pytest.mark.parametrize("source", [np.float16, np.float32])
def test_values_are_rounded_to_the_nearest_code(
    dtype: popxl.dtype, scale: int, source: type, rng: Generator
):
    values = decoded(all_codes(dtype), dtype)
    positive = values[:128]
    ties = (positive[1:] + positive[:-1]) / 2
    largest = LARGEST[dtype]
    x = np.concatenate([values, ties, -ties, rng.uniform(-largest, largest, size=200)])
    x = x * 2.0**-scale
    x = x[~(np.abs(x) > np.finfo(source).max)].astype(source)
    (found,) = run_ops(to_float8(dtype, scale), x)
    assert found.dtype == dtype.as_numpy()
    scaled = torch.from_numpy(x.astype(np.float32) * np.float32(2.0**scale))
    np.testing.assert_array_equal(
        found.view(np.uint8), scaled.to(TWINS[dtype]).view(torch.uint8).numpy()
    )


@FORMATS
def test_values_out_of_range_are_nan(dtype: popxl.dtype):
    x = np.array([1.5, -1.5, np.inf, np.nan], np.float32) * np.float32(LARGEST[dtype])
    (found,) = run_ops(to_float8(dtype, 0), x)
    np.testing.assert_array_equal(found.view(np.uint8), [0x80] * 4)


@FORMATS
def test_replicas_with_values_and_scales_of_their_own(dtype: popxl.dtype, rng: Generator):
    x, scales = rng.normal(size=(2, 3, 5)).astype(np.float16), np.array([1, 3], np.int32)

    def build(t: popxl.Tensor, scale: popxl.Tensor) -> list[popxl.Tensor]:
        coded = ops.pow2scale_cast_to_fp8(t, scale, dtype)
        moved = ops.transpose(coded)
        return [coded, ops.pow2scale_cast_from_fp8(moved, ops.negate(scale), popxl.float16)]

    coded, back = run_replicas(build, x, scales)
    for replica, scale in enumerate(scales):
        (alone,) = run_ops(to_float8(dtype, int(scale)), x[replica])
        np.testing.assert_array_equal(coded[replica], alone)
        wanted = decoded(alone.ravel(), dtype).reshape(3, 5) * 2.0**-scale
        np.testing.assert_array_equal(back[replica], wanted.T.astype(np.float16))


def test_names_and_errors():
    with main_graph() as graph:
        t, scale = tensor((2,), popxl.float16), popxl.constant(0)
        coded = ops.pow2scale_cast_to_fp8(t, scale, popxl.float8_143)
        assert last_op(graph) == ("Pow2ScaleThenCast", ["x_float8_143"])
        ops.pow2scale_cast_from_fp8(coded, scale, popxl.float16)
        assert last_op(graph) == ("CastThenPow2Scale", ["x_float8_143_float16"])
        with pytest.raises(TypeError, match="casts to float8"):
            ops.pow2scale_cast_to_fp8(t, scale, popxl.float16)
        with pytest.raises(TypeError, match="float16 or float32"):
            ops.pow2scale_cast_from_fp8(coded, scale, popxl.int32)
        with pytest.raises(ValueError, match="scalar"):
            ops.pow2scale_cast_to_fp8(t, popxl.constant([0]), popxl.float8_143)
        with pytest.raises(TypeError, match="int32"):
            ops.pow2scale_cast_to_fp8(t, popxl.constant(0.0), popxl.float8_143)
        with pytest.raises(popart.popart_exception, match="expected float16 or float32"):
            ops.pow2scale_cast_to_fp8(tensor((2,), popxl.int32), scale, popxl.float8_143)
        with pytest.raises(popart.popart_exception, match="expected float8_143 or float8_152"):
            ops.pow2scale_cast_from_fp8(t, scale, popxl.float32)
