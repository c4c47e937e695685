"""Attention in one step against float64, in C++ with each instruction set and with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import Generator
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import attention as module
from popxl_torch.kernels.attention import FEW_QUERIES, PIECE
from popxl_torch.kernels.native import ATTENDED, MASKS, Native
from popxl_torch.kernels.registry import Site

from runtime.tests.popxl_torch.kernels.test_native import SETS

# Sums of weights and values of size 1 in float32: a few hundred roundings of 6e-8.
ATOL = 1e-5
SCALE, FILL = 0.4, -65504.0
WAYS = [*SETS, None]
FLOATS = [dtype for dtype in ATTENDED if dtype.is_floating_point]


@pytest.fixture(params=WAYS, ids=lambda way: way.name if way else "torch")
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Native | None:
    monkeypatch.setattr(module, "native", lambda: request.param)
    return request.param


def normal(rng: Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=shape)).to(dtype)


def parts_of_a_cache(
    rng: Generator, dtype: torch.dtype, *outer: int, t: int, d: int
) -> torch.Tensor:
    """(*outer, t, d) of a longer and wider buffer, which holds NaN around it."""
    whole = torch.full((*outer, t + 3, d + 5), torch.nan, dtype=dtype)
    whole[..., 1 : t + 1, 2 : d + 2] = normal(rng, *outer, t, d, dtype=dtype)
    return whole[..., 1 : t + 1, 2 : d + 2]


def mask_of(rng: Generator, meaning: str | None, *shape: int) -> torch.Tensor | None:
    if meaning is None:
        return None
    seen = torch.from_numpy(rng.random(shape) < 0.6)
    if meaning == "added":
        seen[..., 0] = True  # float32 has few digits left behind -3e4
        return torch.where(seen, normal(rng, *shape), -3e4)
    seen[..., 0, :] = False  # a query that sees nothing
    return seen if meaning == "visible" else ~seen


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    meaning: str | None,
    rows_first: bool = False,
    lead: int = 0,
    scales: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """The kernel, bound and called twice: the second time with what it remembers."""
    attrs = {"scale": SCALE, "mask": meaning, "fill": FILL, "rows_first": rows_first}
    given = [t for t in (q, k, v, mask, *scales) if t is not None]
    specs = [Spec(tuple(t.shape[lead:]), "float16") for t in given]
    run = module.attention(Site("Attention", attrs, specs, specs[:1]), lead)
    first = run(*given)
    torch.testing.assert_close(run(*given), first, rtol=0, atol=0, equal_nan=True)
    return first


def expected(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    meaning: str | None,
) -> torch.Tensor:
    scores = SCALE * (q.double() @ k.double().mT)
    if mask is not None:
        if meaning == "added":
            scores = scores + mask.double()
        else:
            scores = torch.where(mask if meaning == "visible" else ~mask, scores, FILL)
    return torch.softmax(scores, -1) @ v.double()


def assert_attended(found: torch.Tensor, *given, rows_first: bool = False) -> None:
    wanted = expected(*given)
    wanted = wanted.transpose(-2, -3) if rows_first else wanted
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("meaning", MASKS)
@pytest.mark.parametrize("m", [1, 3, FEW_QUERIES, FEW_QUERIES + 1])
def test_masks(rng: Generator, way, m: int, meaning: str | None, dtype: torch.dtype):
    q = normal(rng, 2, 3, m, 40)
    k, v = (parts_of_a_cache(rng, dtype, 2, 3, t=21, d=40) for _ in "kv")
    mask = mask_of(rng, meaning, 2, 1, m, 21)
    assert_attended(attend(q, k, v, mask, meaning), q, k, v, mask, meaning)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sizes(rng: Generator, way, dtype: torch.dtype):
    sizes = [1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65, 100, 129, 256, 300]
    for d, e, t in rng.choice(sizes, (25, 3)).tolist():
        q = normal(rng, 1, 2, 1, d)
        k = parts_of_a_cache(rng, dtype, 1, 2, t=t, d=d)
        v = parts_of_a_cache(rng, dtype, 1, 2, t=t, d=e)
        mask = mask_of(rng, "visible", 1, 1, 1, t)
        mask[..., 0] = True
        # With many channels scores are large: a smaller query keeps the bound.
        q = q / d**0.5
        assert_attended(attend(q, k, v, mask, "visible"), q, k, v, mask, "visible")


@pytest.mark.parametrize("outer", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_outer_axes(rng: Generator, way, outer: tuple[int, ...], dtype: torch.dtype):
    q = normal(rng, *outer, 2, 8)
    k, v = (parts_of_a_cache(rng, dtype, *outer, t=9, d=8) for _ in "kv")
    mask = mask_of(rng, "visible", 2, 9)
    lead = int(len(outer) == 3)
    mask = mask.expand(2, 2, 9) if lead else mask
    found = attend(q, k, v, mask, "visible", lead=lead)
    assert_attended(found, q, k, v, mask[0] if lead else mask, "visible")


@pytest.mark.parametrize("m", [2, FEW_QUERIES + 1])
def test_rows_first(rng: Generator, way, m: int):
    q = normal(rng, 2, 2, 3, m, 8)
    k, v = (parts_of_a_cache(rng, torch.float16, 2, 2, 3, t=9, d=8) for _ in "kv")
    found = attend(q, k, v, None, None, rows_first=True, lead=1)
    assert_attended(found, q, k, v, None, None, rows_first=True)
    if way is not None and m <= FEW_QUERIES:  # replicas' heads side by side, as one row
        assert found.permute(1, 2, 0, 3, 4).is_contiguous()


def test_queries_and_values_of_any_stride(rng: Generator, way):
    q = normal(rng, 8, 2, 3, 2).permute(3, 2, 1, 0)
    k = normal(rng, 2, 3, 8, 9).transpose(2, 3)
    v = normal(rng, 2, 3, 9, 16)[..., ::2]
    assert_attended(attend(q, k, v, None, None), q, k, v, None, None)


def test_hidden_values_do_not_matter(rng: Generator, way):
    if way is None:
        pytest.skip("torch multiplies hidden values by 0")
    q, k, v = normal(rng, 1, 1, 1, 8), normal(rng, 1, 1, 4, 8), normal(rng, 1, 1, 4, 8)
    v[..., 2, :] = torch.inf
    mask = torch.tensor([True, True, False, True])[None, None, None]
    assert attend(q, k, v, mask, "visible").isfinite().all()


def test_nan_is_seen(rng: Generator, way):
    q, k, v = normal(rng, 2, 1, 1, 8), normal(rng, 2, 1, 20, 8), normal(rng, 2, 1, 20, 8)
    k[1, 0, 7, 3] = torch.nan
    found = attend(q, k, v, None, None)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_several_threads(rng: Generator, way):
    q = normal(rng, 2, 4, 1, 64) / 8
    k, v = (normal(rng, 2, 4, 1200, 64, dtype=torch.float16) for _ in "kv")
    assert k.numel() > PIECE
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = attend(q, k, v, None, None)
    finally:
        torch.set_num_threads(before)
    assert_attended(found, q, k, v, None, None)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gpu_widens_no_more_at_once_than_is_set_aside(
    monkeypatch: pytest.MonkeyPatch, scaled: bool
):
    """Tensors without contents stand for those of a GPU: 64 sequences of int8 keys and values."""
    q = torch.empty(64, 16, 1, 256, device="meta")
    k, v = (torch.empty(64, 16, 300, 256, dtype=torch.int8, device="meta") for _ in range(2))
    scales = [torch.empty(64, 16, 300, 1, device="meta") for _ in range(2 * scaled)]
    sizes = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
        assert k.dtype == v.dtype == torch.float32
        sizes.append(k.numel() + v.numel())
        return q

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    module._many(q, k, v, None, SCALE, *scales)
    assert sum(sizes) == k.numel() + v.numel()
    assert max(sizes) <= module.MANY_ON_GPU
    assert len(sizes) < 16


def test_scores_far_apart(rng: Generator, way):
    """Weights from 1 down to 0, without overflow."""
    q = torch.full((1, 1, 1, 1), 1 / SCALE)
    k = torch.from_numpy(np.r_[np.linspace(-200, 300, 61), 299.5, 300.0]).float()[
        None, None, :, None
    ]
    v = normal(rng, 1, 1, 63, 4)
    assert_attended(attend(q, k, v, None, None), q, k, v, None, None)


def codes_and_scales(rng: Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in part of a buffer that holds others around them; the scales of their rows, which make
    numbers of size 1 of them."""
    *outer, t, d = shape
    whole = torch.from_numpy(rng.integers(-127, 128, (*outer, t + 3, d + 5), np.int8))
    scales = torch.from_numpy(rng.uniform(0.001, 0.01, (*outer, t + 2, 1))).float()
    return whole[..., 1 : t + 1, 2 : d + 2], scales[..., 2:, :]


@pytest.mark.parametrize("meaning", MASKS)
@pytest.mark.parametrize("m", [1, 3, FEW_QUERIES, FEW_QUERIES + 1])
@pytest.mark.parametrize(("outer", "d"), [((), 7), ((2, 3), 40), ((2, 2, 3), 16)], ids=str)
def test_codes_and_scales(
    rng: Generator, way, m: int, meaning: str | None, outer: tuple[int, ...], d: int
):
    q = normal(rng, *outer, m, d)
    (k, k_scales), (v, v_scales) = (codes_and_scales(rng, *outer, 21, d) for _ in "kv")
    mask = mask_of(rng, meaning, *outer[:-1], *outer[-1:] and (1,), m, 21)
    lead = int(len(outer) == 3)
    found = attend(q, k, v, mask, meaning, lead=lead, scales=(k_scales, v_scales))
    assert_attended(found, q, k * k_scales, v * v_scales, mask, meaning)
