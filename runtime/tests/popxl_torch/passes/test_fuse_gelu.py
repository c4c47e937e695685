"""GELU written out, in the forms that programs have it."""

from __future__ import annotations

import math

import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds

ROOT = math.sqrt(2 / math.pi)


def _power(x: popxl.Tensor) -> popxl.Tensor:
    cube = x ** popxl.constant(3, x.dtype)
    return 0.5 * x * (1.0 + ops.tanh(ROOT * (x + 0.044715 * cube)))


def _products(x: popxl.Tensor) -> popxl.Tensor:
    return x * (ops.tanh((x * x * x * 0.044715 + x) * ROOT) + 1.0) * 0.5


def _other_number(x: popxl.Tensor) -> popxl.Tensor:
    return 0.5 * x * (1.0 + ops.tanh(ROOT * (x + 0.05 * (x * x * x))))


def _square(x: popxl.Tensor) -> popxl.Tensor:
    return 0.5 * x * (1.0 + ops.tanh(ROOT * (x + 0.044715 * (x * x))))


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("form", [_power, _products])
def test_forms(rng: Generator, form, dtype: popxl.dtype):
    x = rng.normal(size=(4, 5))
    assert kinds(fused(form, x, fusions=("gelu",), dtype=dtype)) == ["Gelu"]
    assert_fused_agrees(form, x, dtype=dtype)


@pytest.mark.parametrize("form", [_other_number, _square])
def test_other_functions(rng: Generator, form):
    assert "Gelu" not in kinds(fused(form, rng.normal(size=(4, 5)), fusions=("gelu",)))
