"""Layer norm, as an op or as arithmetic, is one step."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds

EPS = 0.125
FUSIONS = ("layer_norm",)


def by_steps(square: str = "product", affine: int = 2, axis: int = -1):
    """A function of x, weights and bias."""

    def build(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        c = x - ops.mean(x, axis=axis, keepdims=True)
        squares = c * c if square == "product" else c ** popxl.constant(2, x.dtype)
        y = c / ops.sqrt(EPS + ops.mean(squares, axis=axis, keepdims=True))
        y = w * y if affine else y
        return y + b if affine == 2 else y

    return build


def by_op(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
    return ops.layer_norm(x, w, b, EPS)


FORMS = {
    "op": by_op,
    "product": by_steps(),
    "power": by_steps("power"),
    "no bias": by_steps(affine=1),
    "plain": by_steps(affine=0),
}


@pytest.fixture
def arrays(rng: Generator) -> list[np.ndarray]:
    """x, weights, bias."""
    return [rng.normal(size=shape) for shape in ((5, 8), (8,), (8,))]


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("form", list(FORMS))
def test_forms(arrays: list[np.ndarray], form: str, dtype: popxl.dtype):
    (node,) = fused(FORMS[form], *arrays, fusions=FUSIONS, dtype=dtype)
    assert node.kind == "LayerNorm"
    assert node.attrs == {"eps": EPS}
    assert_fused_agrees(FORMS[form], *arrays, dtype=dtype)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("own", [(0,), (0, 1), (0, 1, 2), (1, 2)])
def test_replicas_that_differ(arrays: list[np.ndarray], form: str, own: tuple[int, ...]):
    arrays = [np.stack([a, a[::-1]]) if i in own else a for i, a in enumerate(arrays)]
    assert_fused_agrees(FORMS[form], *arrays, replicas=2, own=own)


def test_several_groups_are_something_else(arrays: list[np.ndarray]):
    def groups(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        return ops.group_norm(x, w, b, 2, EPS)

    assert kinds(fused(groups, *arrays, fusions=FUSIONS)) == ["GroupNormalization"]


def test_another_axis_is_something_else(rng: Generator):
    arrays = [rng.normal(size=shape) for shape in ((8, 8), (8,), (8,))]
    assert "LayerNorm" not in kinds(fused(by_steps(axis=0), *arrays, fusions=FUSIONS))


def test_another_mean_is_something_else(arrays: list[np.ndarray]):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        c = x - ops.mean(x * w, axis=-1, keepdims=True)
        return c / ops.sqrt(ops.mean(c * c, axis=-1, keepdims=True) + EPS)

    assert "LayerNorm" not in kinds(fused(body, *arrays, fusions=FUSIONS))
