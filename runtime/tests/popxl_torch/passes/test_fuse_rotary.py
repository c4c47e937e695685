"""Queries and keys from one product are rotated together."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds

BATCH, SEQUENCE, HEADS, WIDTH = 2, 3, 2, 8
FUSIONS = ("rotary",)


def rotated(parts: int, turned: tuple[int, ...], rotary_dim: int = 4, sizes=None):
    """A function of x (b, s, n, parts * d) and two tables."""

    def build(x: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor) -> popxl.Tensor:
        found = ops.split(x, sizes or parts, axis=3)
        return ops.concat(
            [
                rotary_pos_embed(part, sin, cos, rotary_dim) if i in turned else part
                for i, part in enumerate(found)
            ],
            axis=3,
        )

    return build


def tensors(rng: Generator, width: int, pairs: int = 2) -> list[np.ndarray]:
    angles = rng.uniform(0, 6, (SEQUENCE, pairs))
    return [rng.normal(size=(BATCH, SEQUENCE, HEADS, width)), np.sin(angles), np.cos(angles)]


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("turned", [(0, 1), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_neighbours(rng: Generator, rotary_dim: int, turned: tuple[int, ...], dtype: popxl.dtype):
    arrays = tensors(rng, 3 * WIDTH, rotary_dim // 2)
    body = rotated(3, turned, rotary_dim)
    nodes = fused(body, *arrays, fusions=FUSIONS, dtype=dtype)
    assert kinds(nodes) == ["RotarySplit", "Concat"]
    assert nodes[0].attrs["rotated"] == (turned[0], len(turned))
    assert_fused_agrees(body, *arrays, dtype=dtype)


def test_heads_of_odd_width(rng: Generator):
    assert_fused_agrees(rotated(3, (0, 1)), *tensors(rng, 27))


@pytest.mark.parametrize("own", [(0,), (1, 2), (0, 1, 2)])
def test_replicas_that_differ(rng: Generator, own: tuple[int, ...]):
    arrays = tensors(rng, 3 * WIDTH)
    arrays = [np.stack([a, a[::-1]]) if i in own else a for i, a in enumerate(arrays)]
    assert_fused_agrees(rotated(3, (0, 1)), *arrays, replicas=2, own=own)


@pytest.mark.parametrize(
    ("turned", "sizes"),
    [((0,), None), ((0, 2), None), ((0, 1), (4, 8, 12))],
    ids=["one part", "not neighbours", "sizes"],
)
def test_what_is_left_alone(rng: Generator, turned: tuple[int, ...], sizes):
    body = rotated(3, turned, sizes=sizes)
    arrays = tensors(rng, 3 * WIDTH)
    assert "RotarySplit" not in kinds(fused(body, *arrays, fusions=FUSIONS))
    assert_fused_agrees(body, *arrays)


def test_tables_that_a_part_is_needed_for(rng: Generator):
    def body(x: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor) -> popxl.Tensor:
        q, k, v = ops.split(x, 3, axis=3)
        sin = sin * ops.sum(v)
        return rotary_pos_embed(q, sin, cos, 4) + rotary_pos_embed(k, sin, cos, 4)

    arrays = tensors(rng, 3 * WIDTH)
    assert "RotarySplit" not in kinds(fused(body, *arrays, fusions=FUSIONS))
    assert_fused_agrees(body, *arrays)
