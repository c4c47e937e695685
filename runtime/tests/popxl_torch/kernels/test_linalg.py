"""Products of big half matrices: values, layouts, and the memory they need."""

from __future__ import annotations

import threading

import pytest
import torch
from numpy.random import Generator
from popxl_torch.kernels import linalg
from popxl_torch.kernels.linalg import STOCK_ROWS, TILE_COLUMNS, TILED_ABOVE, matmul_2d

FLOAT32_ATOL = 1e-3  # sums of a thousand products of size 1 in float32, with a wide margin
INNER = 1030


@pytest.fixture(autouse=True)
def torch_only(monkeypatch: pytest.MonkeyPatch):
    """The C++ kernels have tests of their own; here is what is used where they are not."""
    monkeypatch.setattr(linalg, "native", lambda: None)


def matrix(rng: Generator, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(rows, columns))).to(dtype)


LAYOUTS = {
    "stored as (n, k)": lambda w: w.t().contiguous().t(),
    "stored as (k, n)": lambda w: w.contiguous(),
    "every second column": lambda w: torch.stack([w, w], 2).flatten(1)[:, ::2],
    "every second row of (n, k)": lambda w: torch.stack([w.t(), w.t()], 1).flatten(0, 1)[::2].t(),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("columns", [TILE_COLUMNS * 2, TILE_COLUMNS * 2 + 1, 3 * TILE_COLUMNS - 1])
@pytest.mark.parametrize("left", [torch.float16, torch.float32])
def test_tiles(rng: Generator, layout: str, columns: int, left: torch.dtype):
    x = matrix(rng, 5, INNER, left)
    w = LAYOUTS[layout](matrix(rng, INNER, columns, torch.float16))
    assert w.numel() > TILED_ABOVE
    found = matmul_2d(x, w)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (x.double() @ w.double()).float(), rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("left", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, STOCK_ROWS])
def test_few_rows_are_rounded_to_half_precision_and_summed_up_in_float32(
    rng: Generator, rows: int, left: torch.dtype
):
    x, w = matrix(rng, rows, INNER, left), matrix(rng, 300, INNER, torch.float16).t()
    found = matmul_2d(x, w)
    assert found.dtype == torch.float32
    wanted = x.double() @ w.double()
    # Half a unit in the last place of the result, and of every element of x.
    bound = 2.0**-11 * (wanted.abs() + x.double().abs() @ w.double().abs()) + FLOAT32_ATOL
    assert bool(((found - wanted).abs() <= bound).all())
    # Sums in float16 would end at 2048.
    ones = torch.ones(4100, 300, dtype=torch.float16).t().contiguous().t()
    assert bool((matmul_2d(torch.ones(rows, 4100, dtype=left), ones) == 4100).all())


@pytest.mark.parametrize("has_products", [True, False])
@pytest.mark.parametrize("rows", [1, 13, 40])
def test_bfloat16_weights_are_multiplied_by_the_processor_if_it_can(
    rng: Generator, monkeypatch: pytest.MonkeyPatch, rows: int, has_products: bool
):
    monkeypatch.setattr(linalg, "_multiplies_brain", lambda: has_products)
    x, w = matrix(rng, rows, INNER, torch.float32), matrix(rng, 300, INNER, torch.bfloat16).t()
    found = matmul_2d(x, w)
    assert found.dtype == torch.float32
    # Half a unit in the last place of the result, and of every element of x.
    wanted, rounding = x.double() @ w.double(), 2.0**-8 if has_products else 0
    bound = rounding * (wanted.abs() + x.double().abs() @ w.double().abs()) + FLOAT32_ATOL
    assert bool(((found - wanted).abs() <= bound).all())
    assert torch.equal(found.bfloat16().float(), found) == has_products


def test_small_half_matrices_give_float32(rng: Generator):
    x, w = matrix(rng, 3, 8, torch.float16), matrix(rng, 8, 2, torch.float16)
    found = matmul_2d(x, w)
    torch.testing.assert_close(found, x.float() @ w.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_other_types_stay(rng: Generator, dtype: torch.dtype):
    x, w = matrix(rng, 3, 8, dtype), matrix(rng, 8, 2, dtype)
    assert matmul_2d(x, w).dtype == dtype


def test_memory_for_tiles_is_kept_and_no_larger_than_a_tile(rng: Generator):
    def addresses() -> set[int]:
        w = matrix(rng, INNER, 4 * TILE_COLUMNS, torch.float16)
        result = set()
        for _ in range(2):
            matmul_2d(matrix(rng, 2, INNER, torch.float16), w)
            (buffer,) = linalg._kept.buffers.values()
            assert buffer.numel() == TILE_COLUMNS * INNER
            result.add(buffer.data_ptr())
        return result

    seen: list[set[int]] = []
    threads = [threading.Thread(target=lambda: seen.append(addresses())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in seen] == [1, 1]


def test_a_result_outlives_the_next_product(rng: Generator):
    x = matrix(rng, 2, INNER, torch.float16)
    w, v = (matrix(rng, INNER, 2 * TILE_COLUMNS, torch.float16) for _ in "ab")
    first = matmul_2d(x, w)
    before = first.clone()
    matmul_2d(x, v)
    assert torch.equal(first, before)
