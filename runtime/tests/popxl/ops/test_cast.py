"""Casts."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, run_replicas, tensor

DTYPES = ["bool", "int8", "int32", "uint8", "uint32", "float16", "float32"]


def values(rng: Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers that every type of the table can hold."""
    return (rng.uniform(0, 100, size=shape) * rng.integers(0, 2, size=shape)).astype(dtype)


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_cast(source: str, target: str, rng: Generator):
    x = values(rng, (2, 6), source)
    to = popxl.dtype.from_name(target)
    (one,) = run_ops(lambda t: ops.cast(t, to), x[0])
    (two,) = run_replicas(lambda t: ops.cast(t, to), x)
    assert one.dtype == two.dtype == np.dtype(target)
    np.testing.assert_array_equal(one, x[0].astype(target))
    np.testing.assert_array_equal(two, x.astype(target))


def test_floats_are_truncated():
    x = np.array([-2.7, -0.5, 0.9, 3.5], np.float32)
    (found,) = run_ops(lambda t: ops.cast(t, popxl.int32), x)
    np.testing.assert_array_equal(found, [-2, 0, 0, 3])


def test_negative_integers_wrap_into_unsigned_ones():
    x = np.array([-1, -(2**31), 5], np.int32)
    (found,) = run_ops(lambda t: ops.cast(t, popxl.uint32), x)
    np.testing.assert_array_equal(found, np.array([2**32 - 1, 2**31, 5], np.uint32))


def test_float16_overflow_is_infinite_and_underflow_is_rounded():
    x = np.array([70000.0, -70000.0, 65504.0, 1e-9, 6e-8], np.float32)
    (found,) = run_ops(lambda t: ops.cast(t, popxl.float16), x)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, x.astype(np.float16))


def test_a_cast_is_an_op_even_to_the_same_dtype():
    with main_graph() as graph:
        t = tensor((2,))
        result = ops.cast(t, popxl.float32)
        assert result != t
        assert last_op(graph) == ("Cast", ["x_float32"])
        ops.cast(t, popxl.float16)
        assert last_op(graph) == ("Cast", ["x_float16"])


def test_float8_has_its_own_cast():
    with main_graph():
        t = tensor((2,), popxl.float16)
        with pytest.raises(TypeError, match="pow2scale_cast_to_fp8"):
            ops.cast(t, popxl.float8_143)
