"""Seeds: reproducible bit for bit."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl.random_seed import MAX_UINT64, two_uint32_to_uint64, uint64_to_two_uint32


def draws(seed: int, count: int) -> np.ndarray:
    """(count, 2) halves of 64-bit draws, high half first, computed by arithmetic on arrays."""
    whole = np.random.default_rng(seed).integers(
        0, 2**64 - 1, endpoint=True, dtype="uint64", size=count
    )
    return np.stack([whole // 2**32, whole % 2**32], axis=1).astype("uint32")


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((1, 1, 1), (2,)),
        ((3, 1, 1), (3, 2)),
        ((1, 4, 1), (4, 2)),
        ((1, 1, 2), (2, 2)),
        ((3, 4, 2), (3, 4, 2, 2)),
        ((3, 1, 2), (3, 2, 2)),
    ],
)
def test_create_seeds(sizes: tuple[int, int, int], shape: tuple[int, ...]):
    found = popxl.create_seeds(42, 5, *sizes)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, draws(47, int(np.prod(sizes))).reshape(shape))


def test_seeds_that_stay_the_same():
    np.testing.assert_array_equal(popxl.create_seeds(0), draws(0, 1)[0])
    assert not np.array_equal(popxl.create_seeds(0), popxl.create_seeds(1))
    np.testing.assert_array_equal(popxl.create_seeds(0, offset=1), popxl.create_seeds(1))


@pytest.mark.parametrize("number", [0, 1, 2**32, MAX_UINT64, 0x0123456789ABCDEF])
def test_halves(number: int):
    high, low = uint64_to_two_uint32(number)
    assert high * 2**32 + low == number
    assert two_uint32_to_uint64(high, low) == number


@pytest.mark.parametrize("number", [-1, MAX_UINT64 + 1])
def test_numbers_out_of_range(number: int):
    with pytest.raises(ValueError, match="uint64"):
        uint64_to_two_uint32(number)


@pytest.mark.parametrize("halves", [(-1, 0), (0, 2**32)])
def test_halves_out_of_range(halves: tuple[int, int]):
    with pytest.raises(ValueError, match="uint32"):
        two_uint32_to_uint64(*halves)


def test_halves_of_numpy_s_numbers():
    number = np.uint64(4626894586153389880)
    halves = uint64_to_two_uint32(number)
    assert halves == (1077282844, 2631520056)
    assert two_uint32_to_uint64(*np.array(halves, "uint32")) == number
