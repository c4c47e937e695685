"""One op against its oracle: on one replica, on two that differ, and on two that share an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import popxl

from runtime.tests.popxl.ops.op_testing import Build, assert_half_close, run_ops

Oracle = Callable[..., "np.ndarray | Sequence[np.ndarray]"]

FLOAT32_RTOL = 1e-5
FLOAT32_ATOL = 1e-5
HALF_ATOL = 1e-5  # what float32 sums of a few dozen terms of size 1 lose where they cancel


def assert_op(
    build: Build,
    oracle: Oracle,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    rtol: float = FLOAT32_RTOL,
    atol: float = FLOAT32_ATOL,
    half_atol: float = HALF_ATOL,
) -> None:
    """Runs ``build`` three ways on the inputs ``first`` (and ``second`` on the other replica).

    Args:
        build: makes output tensors from one tensor per array.
        oracle: the same on arrays; floating-point ones arrive as float64.
        first: inputs of the first replica.
        second: other inputs of the same shapes and dtypes.
        rtol: relative tolerance of float32 results.
        atol: absolute tolerance of float32 results.
        half_atol: absolute tolerance of float16 results beside the unit below.

    float16 results must be the rounded float64 ones but for one unit in the last place.
    """
    limits = (rtol, atol, half_atol)
    for found, wanted in zip(run_ops(build, *first), exact(oracle, first), strict=True):
        assert_equal(found, wanted, *limits)
    both = [np.stack(pair) for pair in zip(first, second, strict=True)]
    _assert_replicas(run_ops(build, *both, replicas=2), oracle, [first, second], limits)

    def with_constants(x: popxl.Tensor) -> popxl.Tensor | Sequence[popxl.Tensor]:
        return build(x, *(popxl.constant(a, popxl.dtype.as_dtype(a.dtype)) for a in first[1:]))

    shared = [[first[0], *first[1:]], [second[0], *first[1:]]]
    results = run_ops(with_constants, both[0], replicas=2)
    _assert_replicas(results, oracle, shared, limits)


def assert_equal(
    found: np.ndarray,
    wanted: np.ndarray,
    rtol: float = FLOAT32_RTOL,
    atol: float = FLOAT32_ATOL,
    half_atol: float = HALF_ATOL,
) -> None:
    """Equal shapes, and values within the tolerance of the dtype found."""
    assert found.shape == np.shape(wanted)
    if found.dtype == np.float16:
        assert_half_close(found, np.asarray(wanted), atol=half_atol)
    elif found.dtype.kind == "f":
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
    else:
        np.testing.assert_array_equal(found, wanted)


def _assert_replicas(
    results: Sequence[np.ndarray],
    oracle: Oracle,
    inputs: Sequence[Sequence[np.ndarray]],
    limits: tuple[float, float, float],
) -> None:
    for replica, arrays in enumerate(inputs):
        for found, wanted in zip(results, exact(oracle, arrays), strict=True):
            assert_equal(found[replica], wanted, *limits)


def exact(oracle: Oracle, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The oracle's results, from arrays whose floats are float64."""
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    result = oracle(*wide)
    return [result] if isinstance(result, np.ndarray | np.generic) else list(result)
