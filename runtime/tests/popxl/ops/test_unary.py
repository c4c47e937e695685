"""Element-wise ops of one tensor against NumPy and the error function of the standard library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
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
FLOAT32_ATOL = 1e-6

Draw = Callable[[Generator, tuple[int, ...]], np.ndarray]


def any_sign(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape) * 3


def positive(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 30, size=shape)


def holes(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([np.nan, np.inf, -np.inf, 0.0, -1.5, 2.0], size=shape)


def with_zeros(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-2.5, -1.0, 0.0, 3.0], size=shape)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def geluerf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@dataclass(frozen=True)
class Case:
    """An op, what it must compute, and how PopART calls it."""

    build: Build
    oracle: Callable[[np.ndarray], np.ndarray]
    kind: str
    name: str
    draw: Draw = any_sign
    bool_result: bool = False


CASES = {
    "abs": Case(ops.abs, np.abs, "Abs", "abs_out"),
    "ceil": Case(ops.ceil, np.ceil, "Ceil", "ceil_out"),
    "floor": Case(ops.floor, np.floor, "Floor", "floor_out"),
    "negate": Case(ops.negate, np.negative, "Neg", "negate_out"),
    "sign": Case(ops.sign, np.sign, "Sign", "sign_out", with_zeros),
    "cos": Case(ops.cos, np.cos, "Cos", "cos_out"),
    "sin": Case(ops.sin, np.sin, "Sin", "sin_out"),
    "tanh": Case(ops.tanh, np.tanh, "Tanh", "tanh_out"),
    "exp": Case(ops.exp, np.exp, "Exp", "exp_out"),
    "exp_": Case(ops.exp_, np.exp, "ExpInplace", "exp_inplace_out"),
    "log": Case(ops.log, np.log, "Log", "log_out", positive),
    "log2": Case(ops.log2, np.log2, "Div", "div_out", positive),
    "sqrt": Case(ops.sqrt, np.sqrt, "Sqrt", "sqrt_out", positive),
    "relu": Case(ops.relu, lambda x: np.maximum(x, 0), "Relu", "relu_out"),
    "relu_": Case(ops.relu_, lambda x: np.maximum(x, 0), "ReluInplace", "relu_inplace_out"),
    "gelu": Case(ops.gelu, gelu, "Gelu", "gelu_out"),
    "gelu_": Case(ops.gelu_, gelu, "GeluInplace", "gelu_inplace_out"),
    "geluerf": Case(ops.geluerf, geluerf, "GeluErf", "geluerf_out"),
    "geluerf_": Case(ops.geluerf_, geluerf, "GeluErfInplace", "geluerf_inplace_out"),
    "swish": Case(ops.swish, lambda x: x / (1 + np.exp(-x)), "Swish", "swish_out"),
    "swish_": Case(ops.swish_, lambda x: x / (1 + np.exp(-x)), "SwishInplace", "swish_inplace_out"),
    "isnan": Case(ops.isnan, np.isnan, "IsNaN", "isnan_out", holes, True),
    "isinf": Case(ops.isinf, np.isinf, "IsInf", "isinf_out", holes, True),
    "isfinite": Case(ops.isfinite, np.isfinite, "Identity", "isfinite_out", holes, True),
    "logical_not": Case(ops.logical_not, lambda x: x == 0, "Not", "not_out", with_zeros, True),
    "clip": Case(
        lambda t: ops.clip(t, -1.25, 2.5), lambda x: np.clip(x, -1.25, 2.5), "Clip", "clip_out"
    ),
    "clip above": Case(
        lambda t: ops.clamp(t, max=0.5), lambda x: np.minimum(x, 0.5), "Clip", "clip_out"
    ),
    "increment_mod": Case(
        lambda t: ops.increment_mod(t, 1.5, 2.0),
        lambda x: np.fmod(x + 1.5, 2.0),
        "IncrementMod",
        "increment_mod_out",
    ),
    "increment_mod_": Case(
        lambda t: ops.increment_mod_(t, 1.5, 2.0),
        lambda x: np.fmod(x + 1.5, 2.0),
        "IncrementModInplace",
        "increment_mod_inplace_out",
    ),
    "identity": Case(ops.identity, lambda x: x, "Identity", "identity_x"),
    "rename": Case(lambda t: ops.rename(t, "y"), lambda x: x, "Identity", "y"),
    "detach": Case(ops.detach, lambda x: x, "Detach", "detach_out"),
    "detach_": Case(ops.detach_, lambda x: x, "DetachInplace", "detach_out"),
    "io_tile_copy": Case(ops.io_tile_copy, lambda x: x, "IoTileCopy", "x_iotilecopy"),
    "ipu_copy": Case(lambda t: ops.ipu_copy(t, 3), lambda x: x, "IpuCopy", "x_c3"),
}
# Rounding of the argument or of a first op is amplified by the second.
HALF_ULPS = {"log2": 4}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_kind_name_and_spec(case: Case):
    with main_graph() as graph:
        t = tensor((3, 4), popxl.float16)
        result = case.build(t)
        assert last_op(graph) == (case.kind, [case.name])
        assert result.shape == (3, 4)
        assert result.dtype is (popxl.bool if case.bool_result else popxl.float16)


def test_takes_tensors_of_the_current_graph_only(case: Case):
    foreign = foreign_tensor()
    with main_graph():
        with pytest.raises(TypeError, match="not a Tensor"):
            case.build(1.0)
        with pytest.raises(ValueError, match="not in the current Graph"):
            case.build(foreign)


def test_float32_result(case: Case, rng: Generator):
    x = case.draw(rng, (5, 7)).astype(np.float32)
    (found,) = run_ops(case.build, x)
    wanted = case.oracle(x.astype(np.float64))
    assert found.dtype == (np.bool_ if case.bool_result else np.float32)
    np.testing.assert_allclose(found, wanted, FLOAT32_RTOL, FLOAT32_ATOL)


def test_float16_result_is_rounded_once(case: Case, rng: Generator):
    x = case.draw(rng, (5, 7)).astype(np.float16)
    (found,) = run_ops(case.build, x)
    wanted = case.oracle(x.astype(np.float64))
    if case.bool_result:
        np.testing.assert_array_equal(found, wanted)
        return
    ulps = next((HALF_ULPS[name] for name in HALF_ULPS if CASES[name] is case), 1)
    assert_half_close(found, wanted, ulps, FLOAT32_ATOL)


def test_replicas_with_values_of_their_own(case: Case, rng: Generator):
    x = case.draw(rng, (2, 3, 5)).astype(np.float32)
    (found,) = run_replicas(case.build, x)
    wanted = case.oracle(x.astype(np.float64))
    np.testing.assert_allclose(found, wanted, FLOAT32_RTOL, FLOAT32_ATOL)


@pytest.mark.parametrize("name", ["exp_", "relu_", "gelu_", "geluerf_", "swish_", "increment_mod_"])
def test_in_place_ops_write_their_input(name: str, rng: Generator):
    case = CASES[name]
    x = any_sign(rng, (4, 3)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        before = ops.identity(t)
        result = case.build(t)
        return [before, t, result]

    before, written, result = run_ops(build, x)
    np.testing.assert_array_equal(before, x)
    np.testing.assert_array_equal(written, result)
    np.testing.assert_allclose(result, case.oracle(x.astype(float)), FLOAT32_RTOL, FLOAT32_ATOL)


def test_detach_alias_is_written_through(rng: Generator):
    x = any_sign(rng, (4,)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        ops.relu_(ops.detach_(t))
        return [t]

    (found,) = run_ops(build, x)
    np.testing.assert_array_equal(found, np.maximum(x, 0))


def test_sign_of_nan_is_zero():
    (found,) = run_ops(ops.sign, np.array([np.nan, -0.0, 2.0], np.float32))
    np.testing.assert_array_equal(found, [0, 0, 1])


def test_clip_keeps_nan_and_the_range_of_float16():
    x = np.array([np.nan, np.inf, -np.inf, 1.0], np.float16)
    (found,) = run_ops(ops.clip, x)
    np.testing.assert_array_equal(found, np.array([np.nan, 65504, -65504, 1], np.float16))


def test_clip_of_integers(rng: Generator):
    x = rng.integers(-9, 9, size=20).astype(np.int32)
    (both,) = run_ops(lambda t: ops.clip(t, -3, 4), x)
    (above,) = run_ops(lambda t: ops.clip(t, max=4), x)
    (neither,) = run_ops(ops.clip, x)
    np.testing.assert_array_equal(both, np.clip(x, -3, 4))
    np.testing.assert_array_equal(above, np.minimum(x, 4))
    np.testing.assert_array_equal(neither, x)
    assert both.dtype == above.dtype == neither.dtype == np.int32


def test_increment_mod_of_integers_has_the_sign_of_the_sum():
    x = np.array([-7, -1, 0, 5, 6], np.int32)
    (found,) = run_ops(lambda t: ops.increment_mod(t, 1, 4), x)
    np.testing.assert_array_equal(found, np.fmod(x + 1, 4))
    assert found.dtype == np.int32


def test_copies_tell_where_they_are():
    with main_graph():
        t = tensor((2,))
        assert ops.ipu_copy(t, 2).ipu == 2
        on_io = ops.io_tile_copy(t)
        assert on_io.tile_set == "io"
        assert ops.io_tile_copy(on_io).tile_set == "compute"
        with pytest.raises(ValueError, match="Could not infer the ipu"):
            ops.ipu_copy(popxl.variable(1.0), 1)
        assert ops.ipu_copy(popxl.variable(1.0), 1, 0).ipu == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lamb_square_is_a_float32_scalar(dtype: type, rng: Generator):
    x = (rng.normal(size=(2, 40, 5)) * 100).astype(dtype)
    (one,) = run_ops(ops.lamb_square, x[0])
    (two,) = run_replicas(ops.lamb_square, x)
    wanted = (x.astype(np.float64) ** 2).sum((1, 2))
    assert one.shape == ()
    assert two.shape == (2,)
    assert one.dtype == two.dtype == np.float32
    np.testing.assert_allclose(one, wanted[0], FLOAT32_RTOL)
    np.testing.assert_allclose(two, wanted, FLOAT32_RTOL)
