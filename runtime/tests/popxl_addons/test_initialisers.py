"""Initial values that are drawn late."""

from __future__ import annotations

import numpy as np
from popxl_addons._initialisers import Full, TruncatedNormal


def test_full_has_no_memory_behind_it():
    values = Full((1000, 1000, 1000, 1000), 0.5)()
    assert values.shape == (1000, 1000, 1000, 1000)
    assert values.dtype == np.float32
    assert set(values.strides) == {0}
    assert values[3, 1, 4, 1] == 0.5


def test_truncated_normal_has_the_distribution():
    np.random.seed(3)  # noqa: NPY002 - the state that the draw uses
    values = TruncatedNormal((200, 1000), scale=0.02)()
    assert (values.shape, values.dtype) == ((200, 1000), np.float32)
    z = values.ravel().astype(np.float64) / 0.02
    assert np.abs(z).max() <= 2
    # Mean 0 and standard deviation 0.8796 of a standard normal cut off at ±2, and its quartiles,
    # within five standard errors of 200,000 draws.
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 0.87963) < 0.007
    assert np.abs(np.quantile(z, [0.25, 0.75]) - [-0.63965, 0.63965]).max() < 0.015


def test_truncated_normal_follows_the_programs_seed():
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(seed)  # noqa: NPY002 - as programs do
        draws.append(TruncatedNormal((5,))())
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).all()
