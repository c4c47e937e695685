"""Plans with every pass on and off, and replicas one by one, give the same numbers."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.tests.popxl_torch.random_programs import (
    INSTRUCTIONS,
    Program,
    draw_program,
    run_program,
)

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
HALF_TOLERANCE = {"rtol": 5e-2, "atol": 3e-2}
ORACLE = {"executor": "interpreter"}
PLANS = [{}, {"join_shards": "0"}, {"fuse": "none"}, {"fuse": "linear,attention"}]


def _arrays(rng: np.random.Generator, replicas: int, uniform: bool) -> dict[str, np.ndarray]:
    stream = rng.uniform(-1, 1, (replicas, 4, 4)).astype("float32")
    return {
        "stream": np.broadcast_to(stream[:1], stream.shape) if uniform else stream,
        "shared": rng.uniform(-1, 1, (4, 4)).astype("float32"),
        "own": rng.uniform(-1, 1, (replicas, 4, 4)).astype("float32"),
    }


@pytest.mark.parametrize("uniform", [False, True], ids=["varying", "uniform"])
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_random_programs_agree(seed: int, replicas: int, uniform: bool) -> None:
    rng = np.random.default_rng([seed, replicas, uniform])
    program = draw_program(rng, length=14, replicas=replicas)
    arrays = _arrays(rng, replicas, uniform)
    expected = run_program(program, arrays, ORACLE)
    for options in PLANS:
        for got, wanted in zip(run_program(program, arrays, options), expected, strict=True):
            np.testing.assert_allclose(got, wanted, **TOLERANCE, err_msg=str(program))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("seed", range(100, 106))
def test_random_programs_in_half_precision_agree(seed: int, replicas: int) -> None:
    rng = np.random.default_rng([seed, replicas])
    program = draw_program(rng, length=10, replicas=replicas)
    arrays = _arrays(rng, replicas, uniform=False)
    expected = run_program(program, arrays, ORACLE, dtype=popxl.float16)
    for options in (*PLANS, {"arithmetic": "fast"}):
        found = run_program(program, arrays, options, dtype=popxl.float16)
        for got, wanted in zip(found, expected, strict=True):
            assert got.dtype == np.float16
            np.testing.assert_allclose(got, wanted, **HALF_TOLERANCE, err_msg=str(program))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_long_random_programs_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    replicas = int(rng.choice([1, 2, 3, 4, 6]))
    program = draw_program(rng, length=40, replicas=replicas)
    arrays = _arrays(rng, replicas, bool(rng.integers(2)))
    expected = run_program(program, arrays, ORACLE)
    for options in PLANS:
        for got, wanted in zip(run_program(program, arrays, options), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=5e-3, atol=5e-4, err_msg=str(program))


_PROGRAMS = st.builds(
    Program,
    st.lists(
        st.tuples(
            st.sampled_from(sorted(INSTRUCTIONS)),
            st.tuples(*[st.integers(0, 999)] * 6),
        ),
        min_size=1,
        max_size=10,
    ).map(tuple),
    st.sampled_from([1, 2, 3, 4]),
)


def _check_a_drawn_program(program: Program) -> None:
    arrays = _arrays(np.random.default_rng(len(program.instructions)), program.replicas, False)
    expected = run_program(program, arrays, ORACLE)
    for options in PLANS:
        for got, wanted in zip(run_program(program, arrays, options), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)


@settings(derandomize=True, max_examples=8, database=None)
@given(program=_PROGRAMS)
def test_programs_that_shrink_agree(program: Program) -> None:
    """What fails here is reported as the shortest program that does."""
    _check_a_drawn_program(program)


@pytest.mark.long
@settings(derandomize=True, max_examples=300, database=None)
@given(program=_PROGRAMS)
def test_many_programs_that_shrink_agree(program: Program) -> None:
    _check_a_drawn_program(program)


def test_the_oracle_sees_a_difference() -> None:
    rng = np.random.default_rng(3)
    program = draw_program(rng, length=14, replicas=2)
    arrays = _arrays(rng, 2, False)
    first = run_program(program, arrays, {})
    arrays["own"] = arrays["own"] + np.float32(0.1)
    second = run_program(program, arrays, {})
    assert any(not np.allclose(a, b, **TOLERANCE) for a, b in zip(first, second, strict=True))
