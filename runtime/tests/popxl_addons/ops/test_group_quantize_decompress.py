"""4-bit group quantisation on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl_addons.ops.group_quantize_decompress import (
    group_quantize_compress_numpy,
    group_quantize_decompress,
    group_quantize_decompress_numpy,
)


def test_packing_puts_the_first_value_on_top():
    values = np.arange(16, dtype="float32")[None]
    packed, scale, bias = group_quantize_compress_numpy(values, 16, -1)
    np.testing.assert_array_equal(packed[0, 0], [0x0123, 0x4567, 0x89AB, 0xCDEF])
    assert packed.dtype == np.uint16
    assert (scale.item(), bias.item()) == (1, 0)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (6, 2, 2)), (1, (6, 2, 2)), (0, (16, 3, 1))])
def test_round_trip(dim: int, shape: tuple, rng: np.random.Generator):
    x = rng.normal(size=(6, 16) if dim else (12, 16)).astype("float32")
    size = 4 * shape[-1]
    packed, scale, bias = group_quantize_compress_numpy(x, size, dim)
    assert packed.shape == shape
    assert scale.shape == bias.shape == (*shape[:2], 1)
    back = group_quantize_decompress_numpy(packed, scale, bias, dim)
    assert (back.shape, back.dtype) == (x.shape, np.float16)
    # Half a step, and the rounding to float16 of the bias, the scale and the result.
    step = np.repeat(scale[..., 0].astype("float32"), size, axis=1)
    step = step if dim else step.T
    assert (np.abs(back - x) <= 0.5 * step + 0.01).all()


def test_constant_groups_are_kept():
    x = np.full((2, 8), 3.0, "float32")
    back = group_quantize_decompress_numpy(*group_quantize_compress_numpy(x, 4, -1), dim=-1)
    np.testing.assert_array_equal(back, x)


def test_errors(rng: np.random.Generator):
    with pytest.raises(ValueError, match="finite"):
        group_quantize_compress_numpy(np.array([[1.0, np.inf, 0, 0]]), 4, -1)
    with pytest.raises(ValueError, match="reshape"):
        group_quantize_compress_numpy(np.zeros((2, 6)), 4, -1)


@pytest.mark.parametrize("dim", [-1, 1, 0, -2])
@pytest.mark.parametrize("rank", [2, 3])
def test_in_the_graph(dim: int, rank: int, ir: popxl.Ir, run: Any, rng: np.random.Generator):
    packed, scale, bias = group_quantize_compress_numpy(rng.normal(size=(6, 32)), 8, -1)
    shape = (6, 4, 1)[:rank]
    tensors = [popxl.variable(packed)]
    tensors += [popxl.variable(x.reshape(shape)) for x in (scale, bias)]
    y = group_quantize_decompress(*tensors, dim)
    (result,) = run([y])
    expected = group_quantize_decompress_numpy(packed, scale, bias, -1)
    expected = expected.T if dim in (0, -2) else expected
    assert (y.shape, y.dtype) == (expected.shape, popxl.float16)
    # The product is not rounded in between on the device.
    np.testing.assert_allclose(result, expected, atol=1e-2)


def test_errors_in_the_graph(ir: popxl.Ir):
    codes = popxl.constant(np.zeros((6, 4, 2), "uint16"))
    good, short, wide = (
        popxl.constant(np.zeros(s, "float16")) for s in ((6, 4, 1), (6, 3, 1), (6, 4, 2))
    )
    with pytest.raises(NotImplementedError, match="rank 3"):
        group_quantize_decompress(codes.reshape((6, 8)), good, good)
    with pytest.raises(ValueError, match=r"\(6, 4, 1\) or \(6, 4\), got \(6, 3, 1\)"):
        group_quantize_decompress(codes, good, short)
    with pytest.raises(popart.popart_exception, match="one scale and bias"):
        group_quantize_decompress(codes, wide, good)
