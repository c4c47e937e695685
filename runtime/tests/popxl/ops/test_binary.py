"""Element-wise ops of several tensors against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import (
    Build,
    assert_half_close,
    foreign_tensor,
    last_op,
    main_graph,
    run_ops,
    run_replicas,
    tensor,
)

FLOAT32_RTOL = 2e-6
# Pairs of shapes and what NumPy makes of them, chosen by how the axes meet.
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (3, 4))]
SHAPES += [((2, 1, 4), (3, 1)), ((1,), (5,)), ((), ())]


@dataclass(frozen=True)
class Case:
    """An op of two tensors, what it must compute, and how PopART calls it."""

    build: Build
    oracle: Callable[..., np.ndarray]
    kind: str
    name: str
    bool_result: bool = False
    positive: bool = False


CASES = {
    "add": Case(ops.add, np.add, "Add", "add_out"),
    "sub": Case(ops.sub, np.subtract, "Sub", "sub_out"),
    "mul": Case(ops.mul, np.multiply, "Mul", "mul_out"),
    "div": Case(ops.div, np.divide, "Div", "div_out"),
    "fmod": Case(ops.fmod, np.fmod, "Fmod", "fmod_out"),
    "pow": Case(ops.pow, np.power, "Pow", "pow_out", positive=True),
    "maximum": Case(ops.maximum, np.maximum, "Max", "maximum_out"),
    "equal": Case(ops.equal, np.equal, "Equal", "equal_out", True),
    "greater": Case(ops.greater, np.greater, "Greater", "greater_out", True),
    "logical_and": Case(ops.logical_and, np.logical_and, "And", "and_out", True),
    "logical_or": Case(ops.logical_or, np.logical_or, "Or", "or_out", True),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def draw(case: Case, rng: Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Values of which some are equal; zeros only for ops that test truth."""
    table = np.array([-3.5, -2.0, -1.0, 0.75, 1.0, 2.5, 4.0])
    if case.positive:
        table = np.abs(table)
    if case.kind in ("And", "Or"):
        table[:3] = 0
    return rng.choice(table, size=shape).astype(dtype)


def test_kind_name_and_spec(case: Case):
    with main_graph() as graph:
        result = case.build(tensor((3, 1), popxl.float16), tensor((4,), popxl.float16))
        assert last_op(graph) == (case.kind, [case.name])
        assert result.shape == (3, 4)
        assert result.dtype is (popxl.bool if case.bool_result else popxl.float16)


def test_takes_tensors_of_the_current_graph_only(case: Case):
    foreign = foreign_tensor()
    with main_graph():
        t = tensor((2,))
        with pytest.raises(ValueError, match="not in the current Graph"):
            case.build(t, foreign)
        with pytest.raises(ValueError, match="not in the current Graph"):
            case.build(foreign, t)
        if case.kind != "Pow":  # takes numbers
            with pytest.raises(TypeError, match="not a Tensor"):
                case.build(t, 1.0)


def test_rejects_shapes_that_do_not_broadcast(case: Case):
    with main_graph(), pytest.raises(popart.popart_exception, match="are not aligned"):
        case.build(tensor((2, 3)), tensor((2,)))


def test_rejects_other_ipus(case: Case):
    with main_graph():
        t = tensor((2,))
        with pytest.raises(ValueError, match="located on different IPUs"):
            case.build(t, ops.ipu_copy(t, 1))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("logical")])
def test_rejects_mixed_dtypes(name: str):
    with main_graph():
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            CASES[name].build(tensor((3,)), tensor((3,), popxl.int32))
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            CASES[name].build(tensor((3,)), tensor((3,), popxl.float16))


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_float32_result(case: Case, left: tuple, right: tuple, rng: Generator):
    x, y = draw(case, rng, left, np.float32), draw(case, rng, right, np.float32)
    (found,) = run_ops(case.build, x, y)
    wanted = np.asarray(case.oracle(x.astype(np.float64), y.astype(np.float64)))
    assert found.dtype == (np.bool_ if case.bool_result else np.float32)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, FLOAT32_RTOL)


def test_float16_result(case: Case, rng: Generator):
    x, y = (rng.uniform(0.5, 4, size=(6, 9)).astype(np.float16) for _ in range(2))
    (found,) = run_ops(case.build, x, y)
    wanted = case.oracle(x.astype(np.float64), y.astype(np.float64))
    if case.bool_result:
        np.testing.assert_array_equal(found, wanted)
    else:
        assert_half_close(found, wanted, ulps=0 if case.kind in ("Add", "Sub", "Mul") else 1)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_replicas_with_values_of_their_own(case: Case, left: tuple, right: tuple, rng: Generator):
    x, y = draw(case, rng, (2, *left), np.float32), draw(case, rng, (2, *right), np.float32)
    (found,) = run_replicas(case.build, x, y)
    for replica in range(2):
        wanted = case.oracle(x[replica].astype(np.float64), y[replica].astype(np.float64))
        np.testing.assert_allclose(found[replica], wanted, FLOAT32_RTOL)


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_a_varying_and_a_uniform_operand(left: tuple, right: tuple, rng: Generator):
    x, y = rng.normal(size=(2, *left)), rng.normal(size=right)
    x, y = x.astype(np.float32), np.asarray(y, np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        return [ops.sub(t, popxl.constant(y)), ops.sub(popxl.constant(y), t)]

    ahead, behind = run_replicas(build, x)
    for replica in range(2):
        np.testing.assert_array_equal(ahead[replica], x[replica] - y)
        np.testing.assert_array_equal(behind[replica], y - x[replica])


def test_integer_division_and_remainder_go_towards_zero(rng: Generator):
    x = rng.integers(-20, 20, size=50).astype(np.int32)
    y = rng.choice([-7, -3, 2, 5], size=50).astype(np.int32)
    quotient, remainder = run_ops(lambda s, t: [ops.div(s, t), ops.fmod(s, t)], x, y)
    np.testing.assert_array_equal(quotient, np.trunc(x / y))
    np.testing.assert_array_equal(remainder, np.fmod(x, y))
    assert quotient.dtype == remainder.dtype == np.int32


def test_integer_powers():
    x, y = np.array([-3, 2, 5, 1], np.int32), np.array([3, 10, 0, -2], np.int32)
    (found,) = run_ops(ops.pow, x, y)
    np.testing.assert_array_equal(found, [-27, 1024, 1, 1])
    assert found.dtype == np.int32


def test_pow_takes_numbers_in_their_own_dtype():
    x = np.array([0.5, 2.0, 3.0], np.float32)
    (found,) = run_ops(lambda t: ops.pow(t, 2.0), x)
    np.testing.assert_allclose(found, x**2, FLOAT32_RTOL)
    with main_graph():
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            ops.pow(tensor((3,)), 2)
        with pytest.raises(AttributeError):
            ops.pow(2.0, tensor((3,)))


@pytest.mark.parametrize("swap", [False, True])
def test_mul_of_half_by_a_float32_scalar_is_half(swap: bool, rng: Generator):
    x, scale = rng.normal(size=(4, 3)).astype(np.float16), np.array([0.3], np.float32)
    operands = (scale, x) if swap else (x, scale)
    (found,) = run_ops(ops.mul, *operands)
    assert_half_close(found, x.astype(np.float64) * scale, ulps=0)
    with main_graph(), pytest.raises(popart.popart_exception, match="incompatible types"):
        ops.mul(tensor((2, 3), popxl.float16), tensor((3,)))


def test_maximum_takes_any_number_of_tensors(rng: Generator):
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in [(3, 1), (4,), (3, 4)]]
    (three,) = run_ops(ops.maximum, *arrays)
    (one,) = run_ops(ops.maximum, arrays[0])
    np.testing.assert_array_equal(three, np.maximum(np.maximum(*arrays[:2]), arrays[2]))
    np.testing.assert_array_equal(one, arrays[0])
    with main_graph(), pytest.raises(ValueError, match="at least one"):
        ops.maximum()


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.float32])
def test_where(dtype: type, rng: Generator):
    condition = rng.integers(0, 2, size=(3, 1)).astype(dtype)
    x, y = rng.normal(size=(4,)).astype(np.float32), rng.normal(size=(2, 1, 4)).astype(np.float32)
    (found,) = run_ops(ops.where, condition, x, y)
    np.testing.assert_array_equal(found, np.where(condition, x, y))


def test_where_on_replicas(rng: Generator):
    condition = rng.integers(0, 2, size=(2, 3, 1)).astype(np.bool_)
    x, y = rng.normal(size=(2, 4)).astype(np.float16), rng.normal(size=(2, 3, 4)).astype(np.float16)
    (found,) = run_replicas(ops.where, condition, x, y)
    for replica in range(2):
        wanted = np.where(condition[replica], x[replica], y[replica])
        np.testing.assert_array_equal(found[replica], wanted)
    assert found.dtype == np.float16


def test_where_names_and_errors():
    with main_graph() as graph:
        condition, t = tensor((2,), popxl.bool), tensor((2,))
        ops.where(condition, t, t)
        assert last_op(graph) == ("Where", ["where_out"])
        with pytest.raises(popart.popart_exception, match="incompatible types"):
            ops.where(condition, t, tensor((2,), popxl.float16))
        with pytest.raises(TypeError, match="`condition` is not a Tensor"):
            ops.where(True, t, t)


@pytest.mark.parametrize("tensors", ["", "a", "b", "ab"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scaled_add(tensors: str, dtype: type, rng: Generator):
    x, y = rng.normal(size=(2, 3, 4)).astype(dtype), rng.normal(size=(2, 3, 4)).astype(np.float32)
    factors = {"a": 0.5, "b": -1.25}

    def build(s: popxl.Tensor, t: popxl.Tensor) -> popxl.Tensor:
        given = {k: popxl.constant(v, s.dtype) if k in tensors else v for k, v in factors.items()}
        return ops.scaled_add(s, t, **given)

    wanted = 0.5 * x.astype(np.float64) - 1.25 * y
    (one,) = run_ops(build, x[0], y[0])
    (two,) = run_replicas(build, x, y)
    for found, oracle in ((one, wanted[0]), (two, wanted)):
        assert found.dtype == dtype
        if dtype is np.float16:
            assert_half_close(found, oracle)
        else:
            np.testing.assert_allclose(found, oracle, FLOAT32_RTOL, FLOAT32_RTOL)


@pytest.mark.parametrize(
    ("inplace", "kind", "name"),
    [
        (ops.add_, "AddLhsInplace", "add_lhs_inplace_out"),
        (ops.scaled_add_, "ScaledAddLhsInplace", "scaled_add__x"),
    ],
)
def test_in_place_ops_write_their_first_input(inplace: Build, kind: str, name: str, rng: Generator):
    x, y = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))

    def build(s: popxl.Tensor, t: popxl.Tensor) -> list[popxl.Tensor]:
        before = ops.identity(s)
        result = inplace(s, t)
        return [before, s, result]

    before, written, result = run_ops(build, x, y)
    np.testing.assert_array_equal(before, x)
    np.testing.assert_array_equal(written, x + y)
    np.testing.assert_array_equal(result, x + y)
    with main_graph() as graph:
        inplace(tensor((2,)), tensor((2,)))
        assert last_op(graph) == (kind, [name])


def test_scaled_add_does_not_broadcast():
    with main_graph(), pytest.raises(popart.popart_exception, match="equal shapes"):
        ops.scaled_add(tensor((2, 3)), tensor((3,)))


def test_what_is_wider_than_its_target_fails_when_the_session_compiles():
    with main_graph() as graph:
        ops.add_(tensor((4,)), tensor((3, 4)))
    with pytest.raises(popart.popart_exception, match="AddLhsInplace"):
        popxl.Session(graph.ir, "ipu_model")


def test_addition_in_place_checks_its_operands_as_addition_does():
    with main_graph():
        for other in (tensor((3,)), tensor((4,), popxl.float16)):
            with pytest.raises(popart.popart_exception, match="np broadcasting failed"):
                ops.add_(tensor((4,)), other)
