"""4-bit group quantisation on the host."""

from __future__ import annotations

import numpy as np
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
    with pytest.raises(NotImplementedError, match="group_quantize_decompress"):
        group_quantize_decompress(None, None, None)  # type: ignore[arg-type]
