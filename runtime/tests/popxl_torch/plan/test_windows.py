"""The pieces of a window are its elements, in runs as long as they go."""

from __future__ import annotations

import numpy as np
import pytest
from popxl_torch.plan.windows import Window, pieces


@pytest.mark.parametrize(
    ("shape", "window", "count"),
    [
        ((), (), 1),
        ((3, 4), ((0, 3), (0, 4)), 1),
        ((3, 4), ((1, 3), (0, 4)), 1),
        ((3, 4), ((1, 3), (1, 3)), 2),
        ((2, 3, 4, 5), ((0, 2), (0, 3), (2, 4), (0, 5)), 6),
        ((2, 3, 4), ((1, 1), (0, 3), (0, 4)), 1),
    ],
)
def test_pieces_go_as_far_as_they_can(shape: tuple[int, ...], window: Window, count: int) -> None:
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    expected = numbers[tuple(slice(*part) for part in window)].ravel()
    starts, length = pieces(shape, window)
    assert len(starts) == count
    found = np.concatenate([np.arange(start, start + length) for start in starts])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_of_a_window_are_all_that_it_covers(seed: int):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 5, size=random.integers(1, 5)))
    window = tuple(tuple(sorted(random.choice(size + 1, 2, replace=False))) for size in shape)
    starts, length = pieces(shape, window)
    numbers = np.arange(np.prod(shape)).reshape(shape)[tuple(slice(*cut) for cut in window)]
    np.testing.assert_array_equal(np.add.outer(starts, np.arange(length)).ravel(), numbers.ravel())
