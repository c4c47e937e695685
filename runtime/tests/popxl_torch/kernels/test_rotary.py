"""Rotary positions against float64, in C++ and with torch."""

from __future__ import annotations

import pytest
import torch
from numpy.random import Generator
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import rotary as module
from popxl_torch.kernels.registry import Site

from runtime.tests.popxl_torch.kernels.test_native import SETS

ATOL = 1e-6  # two products of size 1 to 4 and their sum in float32
B, S, N, D = 2, 3, 2, 10


@pytest.fixture(params=["C++", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "C++" and not SETS:
        pytest.skip("the C++ kernels are not built here")
    library = SETS[0] if request.param == "C++" else None
    monkeypatch.setattr(module, "native", lambda: library)


def tensors(rng: Generator, channels: int, width: int, *table: int, lead: tuple[int, ...] = ()):
    x = torch.from_numpy(rng.normal(size=(*lead, B, S, N, channels + 3))).float()[..., 1:-2]
    angles = torch.from_numpy(rng.uniform(0, 6, (*lead, *table, S, width // 2))).float()
    return x, angles.sin(), angles.cos()


def turned(
    x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, width: int, halves: bool, lead: int = 0
) -> torch.Tensor:
    x, sin, cos = (t.double() for t in (x, sin, cos))
    if sin.dim() - lead == 2:
        sin, cos = sin.unsqueeze(lead), cos.unsqueeze(lead)
    sin, cos = sin.unsqueeze(-2), cos.unsqueeze(-2)
    half = width // 2
    first = list(range(half)) if halves else list(range(0, width, 2))
    second = list(range(half, width)) if halves else list(range(1, width, 2))
    y = x.clone()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=ATOL)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("table", [(), (1,), (B,)], ids=str)
@pytest.mark.parametrize("lead", [(), (2,)], ids=str)
@pytest.mark.parametrize("width", [2, 4, D])
def test_heads(rng: Generator, width: int, lead: tuple[int, ...], table: tuple, halves: bool):
    x, sin, cos = tensors(rng, D, width, *table, lead=lead)
    attrs = {"rotary_dim": width, "halves": halves}
    site = Site("RotaryPosEmbed", attrs, [Spec((B, S, N, D), "float32")], [])
    run = module.rotary_pos_embed(site, len(lead))
    wanted = turned(x, sin, cos, width, halves, len(lead))
    for _ in range(2):  # the second time with what it remembers
        assert_close(run(x, sin, cos), wanted)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("rotated", [(0, 2), (1, 2), (0, 3)])
@pytest.mark.parametrize("size", [5, 8])
def test_parts(rng: Generator, size: int, rotated: tuple[int, int], halves: bool):
    x, sin, cos = tensors(rng, 3 * size, 4)
    attrs = {"rotary_dim": 4, "halves": halves, "sizes": (size,) * 3, "rotated": rotated}
    run = module.rotary_split(Site("RotarySplit", attrs, [], []), 0)
    first, count = rotated
    parts = run(x, sin, cos)
    assert len(parts) == 3
    for index, (found, part) in enumerate(zip(parts, x.split(size, -1), strict=True)):
        if first <= index < first + count:
            assert_close(found, turned(part, sin, cos, 4, halves))
        else:
            torch.testing.assert_close(found, part, rtol=0, atol=0)
