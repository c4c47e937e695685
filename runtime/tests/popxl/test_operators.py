"""Python's operators on tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

FLOAT32_RTOL = 2e-6

ARITHMETIC: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any], str]] = {
    "+": (operator.add, np.add, "Add"),
    "-": (operator.sub, np.subtract, "Sub"),
    "*": (operator.mul, np.multiply, "Mul"),
    "/": (operator.truediv, np.divide, "Div"),
    "%": (operator.mod, np.fmod, "Fmod"),
    "**": (operator.pow, np.power, "Pow"),
    "@": (operator.matmul, np.matmul, "MatMul"),
}


@pytest.fixture(params=ARITHMETIC.values(), ids=ARITHMETIC)
def case(request: pytest.FixtureRequest) -> tuple:
    return request.param


def test_two_tensors(case: tuple, rng: Generator):
    apply, oracle, _ = case
    x, y = (rng.uniform(0.5, 2, size=(3, 3)).astype(np.float32) for _ in range(2))
    (found,) = run_ops(apply, x, y)
    np.testing.assert_allclose(found, oracle(x.astype(float), y.astype(float)), FLOAT32_RTOL)


def test_an_array_on_either_side(case: tuple, rng: Generator):
    apply, oracle, kind = case
    x, y = (rng.uniform(0.5, 2, size=(3, 3)).astype(np.float32) for _ in range(2))
    right, left = run_ops(lambda t: [apply(t, y), apply(y, t)], x)
    np.testing.assert_allclose(right, oracle(x.astype(float), y.astype(float)), FLOAT32_RTOL)
    np.testing.assert_allclose(left, oracle(y.astype(float), x.astype(float)), FLOAT32_RTOL)
    with main_graph() as graph:
        apply(tensor((3, 3)), y)
        assert last_op(graph)[0] == kind


@pytest.mark.parametrize("name", [name for name in ARITHMETIC if name != "@"])
def test_a_number_on_either_side(name: str, rng: Generator):
    apply, oracle, _ = ARITHMETIC[name]
    x = rng.uniform(0.5, 2, size=(4,)).astype(np.float32)
    right, left = run_ops(lambda t: [apply(t, 1.25), apply(1.25, t)], x)
    np.testing.assert_allclose(right, oracle(x.astype(float), 1.25), FLOAT32_RTOL)
    np.testing.assert_allclose(left, oracle(1.25, x.astype(float)), FLOAT32_RTOL)


def test_numbers_take_the_dtype_of_the_tensor():
    x = np.array([1, -5], np.int32)
    added, divided = run_ops(lambda t: [t + 1.75, t / 2], x)
    np.testing.assert_array_equal(added, [2, -4])
    np.testing.assert_array_equal(divided, [0, -2])
    assert added.dtype == divided.dtype == np.int32
    (half,) = run_ops(lambda t: t * 0.1, np.ones(2, np.float16))
    np.testing.assert_array_equal(half, np.full(2, 0.1, np.float16))


def test_exponents_keep_their_own_dtype():
    with main_graph():
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            tensor((2,)) ** 2
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            tensor((2,), popxl.float16) ** 2.0


def test_mixed_dtypes_are_not_promoted():
    with main_graph(), pytest.raises(popart.popart_exception, match="np broadcasting failed"):
        tensor((2,)) + tensor((2,), popxl.int32)


def test_logical_operators():
    x, y = np.array([0.0, 0.0, 2.0, 3.0], np.float32), np.array([0, 1, 0, 1], np.bool_)
    both, either, neither, by_array = run_ops(lambda s, t: [s & t, s | t, ~s, s & y], x, y)
    np.testing.assert_array_equal(both, [False, False, False, True])
    np.testing.assert_array_equal(either, [False, True, True, True])
    np.testing.assert_array_equal(neither, [True, True, False, False])
    np.testing.assert_array_equal(by_array, both)
    assert both.dtype == either.dtype == neither.dtype == np.bool_


def test_negation(rng: Generator):
    x = rng.normal(size=(3,)).astype(np.float16)
    np.testing.assert_array_equal(run_ops(operator.neg, x)[0], -x)


def test_only_plus_equals_is_in_place(rng: Generator):
    x = rng.normal(size=(3,)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        added = multiplied = t
        added += 1.0
        assert added is t
        multiplied *= 2.0
        assert multiplied is not t
        return [t, multiplied]

    source, multiplied = run_ops(build, x)
    np.testing.assert_array_equal(source, x + np.float32(1))
    np.testing.assert_array_equal(multiplied, (x + np.float32(1)) * 2)


def test_lists_are_not_extended():
    with main_graph():
        values: Any = [1.0, 2.0]
        values += tensor((2,))
        assert isinstance(values, popxl.Tensor)
        with pytest.raises(ValueError, match="0 elements"):
            tensor((2,)) + np.empty(0)


def test_equality_is_identity_and_order_is_missing():
    with main_graph():
        t, u = tensor((2,)), tensor((2,))
        assert t == t
        assert t != u
        assert t in [u, t]
        with pytest.raises(TypeError):
            t < u  # noqa: B015
        with pytest.raises(TypeError):
            iter(t)
        with pytest.raises(TypeError):
            u in t  # noqa: B015


def test_methods_are_the_ops(rng: Generator):
    x = rng.normal(size=(2, 3)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        return [t.T, t.T_, t.transpose((1, 0)), t.reshape((3, 2)), t.reshape_((3, 2)), t.detach()]

    transposed, reshaped = x.T, x.reshape(3, 2)
    wanted = [transposed, transposed, transposed, reshaped, reshaped, x]
    for found, expected in zip(run_ops(build, x), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5)])
def test_diag(shape: tuple[int, int], rng: Generator):
    x = rng.normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(run_ops(lambda t: t.diag(), x)[0], np.diag(x))
    with main_graph(), pytest.raises(ValueError, match="rank 2"):
        ops.flatten(tensor(shape)).diag()
