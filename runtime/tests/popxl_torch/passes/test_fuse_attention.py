"""Attention is found however it is written, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds

QUERIES, KEYS, WIDTH = 3, 5, 4
OUTER = {"heads of a batch": (2, 2), "batch": (3,), "one head": ()}
MASKS = ("none", "visible", "hidden", "added", "nothing seen")
SCALES = ("none", "scores", "divided", "queries", "keys", "before the transpose")


def _seen(first: int = 1) -> np.ndarray:
    return np.tril(np.ones((QUERIES, KEYS), bool), KEYS - QUERIES - 2 + first)


def attention(mask: str, scale: str, dtype: popxl.dtype = popxl.float32):
    """A function of q (..., m, d), k (..., t, d) and v (..., t, d)."""

    def build(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
        if scale == "queries":
            q = q * 0.5
        if scale == "before the transpose":
            k = 0.5 * k
        k = ops.transpose(k, (*range(k.rank - 2), k.rank - 1, k.rank - 2))
        if scale == "keys":
            k = k / 2.0
        scores = q @ k
        if scale == "scores":
            scores = popxl.constant(0.5, dtype) * scores
        if scale == "divided":
            scores = scores / 2.0
        low = popxl.constant(np.finfo(dtype.as_numpy()).min, dtype)
        if mask == "visible":
            scores = ops.where(popxl.constant(_seen()), scores, low)
        elif mask == "hidden":
            scores = ops.where(popxl.constant(~_seen()), low, scores)
        elif mask == "nothing seen":
            scores = ops.where(popxl.constant(_seen(-1)), scores, low)
        elif mask == "added":
            scores = scores + popxl.constant(np.where(_seen(), 0, -2e4), dtype)
        return ops.softmax(scores, -1) @ v

    return build


def tensors(rng: Generator, *outer: int) -> list[np.ndarray]:
    sizes = (QUERIES, KEYS, KEYS)
    return [rng.normal(size=(*outer, size, WIDTH)) for size in sizes]


@pytest.mark.parametrize("outer", OUTER.values(), ids=list(OUTER))
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", SCALES)
def test_ways_to_write_it(rng: Generator, mask: str, scale: str, outer: tuple[int, ...]):
    arrays = tensors(rng, *outer)
    (node,) = fused(attention(mask, scale), *arrays, fusions=("attention", "views"))
    assert node.kind == "Attention"
    assert node.attrs["scale"] == (1.0 if scale == "none" else 0.5)
    assert len(node.inputs) == (3 if mask == "none" else 4)


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_values(rng: Generator, mask: str, dtype: popxl.dtype):
    arrays = tensors(rng, 2, 2)
    assert_fused_agrees(attention(mask, "queries", dtype), *arrays, dtype=dtype)


@pytest.mark.parametrize("own", [(0, 1, 2), (0,), (1, 2)])
def test_replicas_that_differ(rng: Generator, own: tuple[int, ...]):
    arrays = tensors(rng, 2, 2)
    arrays = [np.stack([a, a[::-1]]) if i in own else a for i, a in enumerate(arrays)]
    body = attention("visible", "scores")
    assert_fused_agrees(body, *arrays, replicas=2, own=own)


def test_a_result_by_rows(rng: Generator):
    def body(*qkv: popxl.Tensor) -> popxl.Tensor:
        return ops.transpose(attention("visible", "queries")(*qkv), (0, 2, 1, 3))

    arrays = tensors(rng, 2, 3)
    (node,) = fused(body, *arrays, fusions=("attention", "views"))
    assert node.attrs["rows_first"]
    assert_fused_agrees(body, *arrays)


def _not_the_last_axis(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
    return ops.softmax(q @ k.T, 0) @ v


def _scores_are_used(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> tuple:
    scores = q @ k.T
    return ops.softmax(scores, -1) @ v, scores


def _mask_that_weighs(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
    scores = ops.where(popxl.constant(_seen()), q @ k.T, popxl.constant(-3.0))
    return ops.softmax(scores, -1) @ v


def _scaled_behind_the_mask(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor) -> popxl.Tensor:
    scores = q @ k.T + popxl.constant(np.where(_seen(), 0.0, -1.0), popxl.float32)
    return ops.softmax(scores * 0.5, -1) @ v


@pytest.mark.parametrize(
    "body", [_not_the_last_axis, _scores_are_used, _mask_that_weighs, _scaled_behind_the_mask]
)
def test_what_is_something_else(rng: Generator, body):
    arrays = tensors(rng)
    assert "Softmax" in kinds(fused(body, *arrays, fusions=("attention", "views")))


def of_codes(dtype: popxl.dtype, own_keys: bool = True):
    """Attention over keys and values that are scales times codes, of q, k, v and two scales."""

    def build(q: popxl.Tensor, *given: popxl.Tensor) -> popxl.Tensor:
        k, v, *scales = given
        k, v = (ops.cast(ops.cast(codes, popxl.int8), dtype) for codes in (k, v))
        k, v = k * ops.cast(scales[0], dtype), ops.cast(scales[1], dtype) * v
        y = attention("visible", "queries", dtype)(q, k, v)
        return y if own_keys else y + ops.sum(k)

    return build


def codes(rng: Generator, *outer: int) -> list[np.ndarray]:
    sizes = ((QUERIES, WIDTH), (KEYS, WIDTH), (KEYS, WIDTH), (KEYS, 1), (KEYS, 1))
    q, k, v, *scales = (rng.uniform(-1, 1, (*outer, *size)) for size in sizes)
    return [q, np.rint(k * 127), np.rint(v * 127), *(abs(scale) / 64 for scale in scales)]


def test_codes_are_read_as_they_are_kept(rng: Generator):
    def from_float32(q: popxl.Tensor, *given: popxl.Tensor) -> popxl.Tensor:
        return of_codes(popxl.float16)(ops.cast(q, popxl.float16), *given)

    nodes = fused(from_float32, *codes(rng, 2, 2), fusions=("attention", "views"))
    assert kinds(nodes) == ["Cast"] * 3 + ["Attention"]
    assert [val.spec.dtype for val in nodes[-1].inputs] == [
        *("float16", "int8", "int8", "bool", "float32", "float32")
    ]


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("own", [(), (1, 2, 3, 4)], ids=str)
def test_values_of_codes(rng: Generator, dtype: popxl.dtype, own: tuple[int, ...]):
    arrays = codes(rng, 2, 2)
    arrays = [np.stack([a, a[::-1]]) if i in own else a for i, a in enumerate(arrays)]
    replicas = 2 if own else 1
    assert_fused_agrees(of_codes(dtype), *arrays, replicas=replicas, own=own, dtype=dtype)


def test_products_that_are_used_elsewhere_are_made(rng: Generator):
    arrays = codes(rng, 2, 2)
    nodes = fused(of_codes(popxl.float32, False), *arrays, fusions=("attention", "views"))
    assert "Mul" in kinds(nodes)
