"""Rounding weights: against plain formulas, element by element, and as arrays cut into shards."""

from __future__ import annotations

import numpy as np
import pytest

from modelling.shards import column_shards, row_shards
from utils.quantise import (
    FORMATS,
    GROUP,
    QuantisedWeight,
    can_quantise,
    dequantise,
    quantise,
    stored_shapes,
)


def weights(rng: np.random.Generator, shape: tuple[int, ...] = (12, 96)) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32)
    values[0] = 0
    values[1, ..., :GROUP] *= 100
    return values


def test_int8_is_the_nearest_of_255_numbers(rng: np.random.Generator) -> None:
    w = weights(rng)
    back = dequantise(*quantise(w, "int8"), "int8")
    step = np.abs(w).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - w) <= step / 2 * 1.0001).all()
    codes = np.divide(back, step, out=np.zeros_like(back), where=step > 0)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)


def test_int4_follows_its_description_element_by_element(rng: np.random.Generator) -> None:
    w = weights(rng, (3, 64))
    codes, scales = quantise(w, "int4")
    back = dequantise(codes, scales, "int4")
    for row in range(3):
        for group in range(2):
            values = w[row, group * GROUP : (group + 1) * GROUP]
            scale = np.float16(values[np.abs(values).argmax()] / -8)
            assert scales[row, group] == scale
            for i in range(GROUP):
                byte = int(codes[row, group * 16 + i % 16])
                code = (byte >> 4 if i >= 16 else byte & 15) - 8
                assert back[row, group * GROUP + i] == np.float32(code) * np.float32(scale)
                if scale != 0:
                    ideal = np.clip(np.rint(values[i] / np.float32(scale)), -8, 7)
                    assert abs(code - ideal) <= 1


def test_int4_is_within_half_a_step_but_at_the_clipped_end(rng: np.random.Generator) -> None:
    w = weights(rng)
    codes, scales = quantise(w, "int4")
    error = np.abs(dequantise(codes, scales, "int4") - w).reshape(12, -1, GROUP)
    assert (error <= np.abs(scales[..., None].astype(np.float32)) * 1.01).all()


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros_and_more_output_axes_are_kept(
    rng: np.random.Generator, format: str
) -> None:
    w = weights(rng, (4, 3, 2, 64))
    codes, scales = quantise(w, format)
    assert not dequantise(codes, scales, format)[0].any()
    for array, stored in zip((codes, scales), stored_shapes(w.shape, format), strict=True):
        assert array.shape == stored.shape
        assert array.dtype == stored.dtype
        assert array.nbytes == stored.size_bytes
    flat = quantise(w.reshape(-1, 64), format)
    np.testing.assert_array_equal(codes.reshape(flat[0].shape), flat[0])


def test_which_shapes_can_be_quantised() -> None:
    assert can_quantise((5, 33), "int8")
    assert not can_quantise((5, 33), "int4")
    assert can_quantise((5, 64), "int4")
    assert not can_quantise((64,), "int8")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("r", [1, 2, 4])
def test_shards_stand_for_the_shards_of_the_numbers(
    rng: np.random.Generator, format: str, r: int
) -> None:
    codes, scales = quantise(weights(rng, (8, 128)), format)
    weight = QuantisedWeight.of_stored(format, codes, scales)
    whole = dequantise(codes, scales, format).astype(np.float16)
    assert weight.shape == whole.shape
    for cut in (column_shards, row_shards):
        ours, expected = cut(weight, r), cut(whole, r)  # type: ignore[arg-type]
        assert ours.shape == expected.shape
        assert ours.dtype == np.float16
        np.testing.assert_array_equal(np.asarray(ours), expected)


def test_output_axes_are_joined_before_cutting(rng: np.random.Generator) -> None:
    codes, scales = quantise(weights(rng, (4, 3, 2, 64)), "int4")
    weight = QuantisedWeight.of_stored("int4", codes, scales)
    assert weight.shape == (4, 3, 2, 64)
    whole = dequantise(codes, scales, "int4").astype(np.float32).reshape(24, 64)
    ours = column_shards(weight.astype(np.float32).reshape(24, 64), 2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.asarray(ours), column_shards(whole, 2))
