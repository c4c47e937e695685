"""Every tolerance of the tests, by name: the only place with exponents.

A tolerance is the largest allowed |ours − reference| as a fraction of the reference's standard
deviation (see `relative_error`), unless its comment says otherwise.
"""

from __future__ import annotations

import numpy as np

# float32 against the PyTorch model in float32: order of summation only.
FLOAT32 = 1e-4

# float16 storage against float32 with the unrounded checkpoint: weights and activations rounded.
FLOAT16 = 2e-2

# Weights in bfloat16, and processors' own products of it, which round activations to it too.
BFLOAT16_ACTIVATIONS = 0.08

# Products with int4 codes round activations to int8, 32 at a time.
INT4_ACTIVATIONS = 0.25

# Keys and values kept in int8: each off by up to 1/254 of the largest number beside it.
INT8_KEYS_AND_VALUES = 0.1

# The PyTorch reference against a restatement in float64.
REFERENCE_FLOAT32 = 1e-5
REFERENCE_FLOAT64 = 1e-11

# Absolute error of sin and cos in a model. Half a unit in the last place below 1 is 2.4e-4 in
# float16 and 3e-8 in float32: the tables must be rounded once, from angles in float64.
ROTARY_FLOAT16 = 3e-4
ROTARY_FLOAT32 = 1e-7

# Absolute error of transformers' tables: a float32 angle near 2048 is 1e-4 wrong.
ROTARY_TRANSFORMERS = 2e-4

BY_PRECISION = {"float32": FLOAT32, "float16": FLOAT16}


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference over the reference's standard deviation.

    Raises:
        AssertionError: shapes differ, either holds NaN or infinity, or the reference is constant.
    """
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"shapes differ: {ours.shape} and {reference.shape}"
    assert np.isfinite(ours).all(), "ours holds NaN or infinity"
    assert np.isfinite(reference).all(), "the reference holds NaN or infinity"
    spread = reference.std()
    assert spread > 0, "a constant reference proves nothing"
    return float(np.abs(ours - reference).max() / spread)


def assert_close(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    """Fails if `relative_error` exceeds the tolerance; says by how much."""
    error = relative_error(ours, reference)
    assert error <= tolerance, f"error {error:.3g} of a standard deviation, allowed {tolerance:.3g}"
