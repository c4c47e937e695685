"""Updates of variables against their formulas, in the main graph and by reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops
from popxl.ops import var_updates

from runtime.tests.popxl.ops.op_agreement import assert_equal
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, tensor

Update = Callable[..., popxl.Tensor]
RUNS = 2
GROUPED = 3  # replicas of the replicated runs


def run_updates(
    update: Update, arrays: list[np.ndarray], by_ref: bool = False, runs: int = RUNS
) -> list[np.ndarray]:
    """Values of the variables made from ``arrays`` after ``runs`` runs of ``update``."""
    with main_graph() as graph:
        variables = [popxl.variable(a, popxl.dtype.as_dtype(a.dtype)) for a in arrays]
        if by_ref:

            def body(t: popxl.TensorByRef, *rest: popxl.Tensor) -> None:
                update(t, *rest)

            body.__annotations__["t"] = popxl.TensorByRef
            ops.call(graph.ir.create_graph(body, *variables), *variables)
        else:
            update(*variables)
    with popxl.Session(graph.ir, "ipu_hw") as session:
        for _ in range(runs):
            session.run()
    return [np.array(session.get_tensor_data(v)) for v in variables]


# op, arguments after t and X, the new value of t
ACCUMULATE: list[tuple[Update, tuple[Any, ...], Callable[..., np.ndarray]]] = [
    (var_updates.accumulate_, (), lambda t, x: t + x),
    (var_updates.accumulate_, (0.25,), lambda t, x: t + 0.25 * x),
    (var_updates.accumulate_square_, (), lambda t, x: t + x * x),
    (var_updates.accumulate_square_, (0.5,), lambda t, x: t + 0.5 * x * x),
    (var_updates.accumulate_mean_, (3.0,), lambda t, x: 0.75 * t + x / 4),
    (var_updates.accumulate_mean_, (0,), lambda t, x: x),
    (var_updates.accumulate_moving_average_, (0.9,), lambda t, x: 0.9 * t + 0.1 * x),
    (var_updates.accumulate_moving_average_square_, (0.9,), lambda t, x: 0.9 * t + 0.1 * x * x),
]


@pytest.mark.parametrize("factor_is_tensor", [False, True])
@pytest.mark.parametrize("by_ref", [False, True])
@pytest.mark.parametrize(("op", "arguments", "formula"), ACCUMULATE)
def test_accumulate(
    rng: Generator,
    op: Update,
    arguments: tuple[Any, ...],
    formula: Callable[..., np.ndarray],
    by_ref: bool,
    factor_is_tensor: bool,
):
    t, x = (rng.normal(size=(3, 4)).astype(np.float32) for _ in "ab")
    x = x.astype(np.float16)

    def update(t: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        factors = [popxl.constant(f, popxl.float32) if factor_is_tensor else f for f in arguments]
        return op(t, x, *factors)

    found, kept = run_updates(update, [t, x], by_ref)
    wanted = t.astype(np.float64)
    for _ in range(RUNS):
        wanted = formula(wanted, x.astype(np.float64))
    assert found.dtype == np.float32
    assert_equal(found, wanted)
    np.testing.assert_array_equal(kept, x)


def test_a_half_accumulator_is_rounded_once():
    """33 * 33 * 1.001 is 1090.09; rounded to half before the sum it would be 1090."""
    t, x = np.full(1, -1089, np.float16), np.full(1, 33, np.float16)
    found, _ = run_updates(lambda t, x: var_updates.accumulate_square_(t, x, 1.001), [t, x], runs=1)
    np.testing.assert_allclose(found, 0.001 * 33 * 33, rtol=1e-3)


@pytest.mark.parametrize("by_tensor", [False, True])
def test_accumulator_scale(rng: Generator, by_tensor: bool):
    t = rng.normal(size=(3, 4)).astype(np.float32)

    def update(t: popxl.Tensor) -> popxl.Tensor:
        return var_updates.accumulator_scale_(
            t, popxl.constant(0.5, popxl.float32) if by_tensor else 0.5
        )

    (found,) = run_updates(update, [t])
    np.testing.assert_array_equal(found, t / 4)


@pytest.mark.parametrize(
    "zero", [var_updates.accumulator_zero_, lambda t: var_updates.accumulator_scale_(t, 0.0)]
)
def test_zero_clears_what_multiplication_would_keep(zero: Update):
    (found,) = run_updates(zero, [np.array([np.nan, np.inf, 1], np.float32)])
    np.testing.assert_array_equal(found, np.zeros(3))


@pytest.mark.parametrize("factor", [None, 0.5, "tensor"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sparse_accumulate(rng: Generator, axis: int, factor: Any):
    t = rng.normal(size=(5, 5)).astype(np.float32)
    indices = np.array([3, 1, 3], np.int32)  # one repeats
    x = rng.normal(size=(5, 3) if axis else (3, 5)).astype(np.float16)

    def update(t: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        f = popxl.constant(0.5, popxl.float32) if factor == "tensor" else factor
        return var_updates.sparse_accumulate_(t, x, popxl.constant(indices), axis, f, W=t)

    found, _ = run_updates(update, [t, x])
    wanted = t.astype(np.float64)
    view = wanted.T if axis else wanted
    for _ in range(RUNS):
        np.add.at(view, indices, (1 if factor is None else 0.5) * (x.T if axis else x))
    assert_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_copy_var_update(rng: Generator, dtype: type):
    t, x = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(dtype)
    found, _ = run_updates(var_updates.copy_var_update_, [t, x])
    np.testing.assert_array_equal(found, x.astype(np.float32))


def test_the_result_is_an_alias(rng: Generator):
    t, x, y = (rng.normal(size=3).astype(np.float32) for _ in "abc")

    def update(t: popxl.Tensor, x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        once = var_updates.accumulate_(t, x)
        return var_updates.copy_var_update_(y, once + t)

    found, _, sums = run_updates(update, [t, x, y], runs=1)
    np.testing.assert_array_equal(sums, 2 * found)


def test_replicas_update_their_own_values(rng: Generator):
    """Accumulators and steps of their own, one update for all."""
    t = rng.normal(size=(GROUPED, 2, 2)).astype(np.float32)
    x, step = rng.normal(size=(2, 2)).astype(np.float32), np.arange(GROUPED, dtype=np.float32)
    with main_graph(GROUPED) as graph:
        own = graph.ir.replica_grouping(group_size=1)
        total = popxl.variable(t, replica_grouping=own)
        steps = popxl.variable(step, replica_grouping=own)
        var_updates.accumulate_mean_(total, popxl.constant(x), steps)
    with popxl.Session(graph.ir, "ipu_hw") as session:
        session.run()
    wanted = [(k * t[k].astype(np.float64) + x) / (k + 1) for k in range(GROUPED)]
    assert_equal(session.get_tensor_data(total), np.stack(wanted))


BETAS, EPSILON, DECAY = (0.9, 0.99), 1e-3, 0.1


def adam(
    m: np.ndarray, v: np.ndarray, w: np.ndarray, step: int | None, decay: float, root: bool
) -> np.ndarray:
    if step is not None:
        m = m / (1 - BETAS[0] ** step)
        v = v / (1 - BETAS[1] ** step) if root else v
    return m / ((np.sqrt(v) if root else v) + EPSILON) + decay * w


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize("decay", [None, DECAY])
@pytest.mark.parametrize(
    ("name", "corrected"),
    [("adam", False), ("adam", True), ("lamb", False), ("lamb", True), ("adamax", True)],
)
def test_updaters(rng: Generator, name: str, corrected: bool, decay: float | None, by_tensor: bool):
    m, v, w = rng.normal(size=5), rng.random(5), rng.normal(size=5)
    arrays = [m, v, w, np.zeros(()), np.zeros(5)]

    def number(value: float | None) -> Any:
        if value is None or not by_tensor:
            return value
        return popxl.constant(value, popxl.float32)

    def update(
        m: popxl.Tensor, v: popxl.Tensor, w: popxl.Tensor, step: popxl.Tensor, x: popxl.Tensor
    ) -> popxl.Tensor:
        options: dict[str, Any] = {"weight_decay": number(decay), "epsilon": number(EPSILON)}
        options |= {"weight": w} if decay else {}
        options |= {"time_step": step} if corrected else {}
        options |= {"beta1": number(BETAS[0])} if corrected else {}
        options |= {"beta2": number(BETAS[1])} if corrected and name != "adamax" else {}
        updater = getattr(var_updates, f"{name}_updater")
        return var_updates.copy_var_update_(x, updater(m, v, **options))

    arrays = [a.astype(np.float32) for a in arrays]
    *_, step, found = run_updates(update, arrays)
    assert step.item() == (RUNS if corrected else 0)
    wanted = adam(
        *(a.astype(np.float64) for a in arrays[:3]),
        step=RUNS if corrected else None,
        decay=decay or 0.0,
        root=name != "adamax",
    )
    assert_equal(found, wanted)


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize(
    ("r1", "r2", "ratio"), [(4.0, 9.0, 2 / 3), (100.0, 4.0, 2.5), (0.0, 4.0, 1.0), (4.0, 0.0, 1.0)]
)
def test_adam_var_update(rng: Generator, r1: float, r2: float, ratio: float, by_tensor: bool):
    """The weight's norm, here up to 10, is limited to 5."""
    t, x = (rng.normal(size=5).astype(np.float32) for _ in "ab")

    def update(t: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        norms = [popxl.constant(r, popxl.float32) for r in (r1, r2)]
        numbers = [popxl.constant(n, popxl.float32) if by_tensor else n for n in (0.5, 5.0)]
        return var_updates.adam_var_update(t, x, *norms, *numbers)

    found, _ = run_updates(update, [t, x], runs=1)
    assert_equal(found, t.astype(np.float64) - 0.5 * ratio * x)


def test_adam_var_update_without_a_rate_changes_nothing(rng: Generator):
    t, x = (rng.normal(size=5).astype(np.float32) for _ in "ab")

    def update(t: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        one = popxl.constant(1.0, popxl.float32)
        return var_updates.adam_var_update(t, x, one, one, max_weight_norm=math.inf)

    np.testing.assert_array_equal(run_updates(update, [t, x])[0], t)


def test_kinds_and_names():
    with main_graph() as graph:
        t = popxl.variable(np.zeros(3, np.float32), name="acc")
        x, i = tensor((3,)), tensor((3,), popxl.int32)
        one = popxl.constant(1.0, popxl.float32)
        accumulate = "Accumulate"
        cases: list[tuple[Callable[[], Any], str, str]] = [
            (lambda: var_updates.accumulate_(t, x), accumulate, "accumulate__acc"),
            (lambda: var_updates.accumulate_square_(t, x), accumulate, "accumulate_square__acc"),
            (lambda: var_updates.accumulate_mean_(t, x, 1), accumulate, "accumulate_mean__acc"),
            (
                lambda: var_updates.accumulate_moving_average_(t, x, 0.1),
                accumulate,
                "accumulate_moving_avg__acc",
            ),
            (
                lambda: var_updates.accumulate_moving_average_square_(t, x, 0.1),
                accumulate,
                "accumulate_moving_avg_square__acc",
            ),
            (
                lambda: var_updates.accumulator_scale_(t, 2.0),
                "AccumulatorScale",
                "accumulator_scale__acc",
            ),
            (
                lambda: var_updates.sparse_accumulate_(t, x, i),
                "PopartSparseAccumulate",
                "sparse_accumulate__acc",
            ),
            (lambda: var_updates.copy_var_update_(t, x), "CopyVarUpdate", "updated__acc"),
            (
                lambda: var_updates.adam_var_update(t, x, one, one, 0.1, 1.0),
                "AdamVarUpdate",
                "adam_var_update_out",
            ),
            (lambda: var_updates.adam_updater(x, x), "AdamUpdater", "Updater"),
        ]
        for make, kind, name in cases:
            make()
            assert last_op(graph) == (kind, [name])


def test_output_dtype_of_the_updaters():
    with main_graph():
        m, w = tensor((3,), popxl.float32), tensor((3,), popxl.float16)
        assert var_updates.adam_updater(m, m).dtype is popxl.float32
        assert var_updates.adam_updater(m, m, w, weight_decay=0.1).dtype is popxl.float16


def test_arguments_of_the_updaters():
    with main_graph():
        m, step = tensor((3,)), popxl.variable(0.0, popxl.float32)
        with pytest.raises(ValueError, match="Weight decay requires weight"):
            var_updates.adam_updater(m, m, weight_decay=0.1)
        with pytest.raises(ValueError, match="Bias correction requires both"):
            var_updates.lamb_updater(m, m, time_step=step, beta1=0.9)
        with pytest.raises(ValueError, match="time_step"):
            var_updates.adamax_updater(m, m)


def test_factors_that_fail_when_the_session_compiles(rng: Generator):
    x = rng.normal(size=3).astype(np.float32)
    with pytest.raises(popart.popart_exception, match="factor of 0"):
        run_updates(lambda t, x: var_updates.accumulate_(t, x, 0.0), [x, x])

    def without_norm(t: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
        one = popxl.constant(1.0, popxl.float32)
        return var_updates.adam_var_update(t, x, one, one, 0.1)

    with pytest.raises(popart.popart_exception, match="max_weight_norm"):
        run_updates(without_norm, [x, x])


@pytest.mark.parametrize(
    "update",
    [
        var_updates.accumulate_,
        var_updates.copy_var_update_,
        lambda t, x: var_updates.sparse_accumulate_(t, x, tensor((3,), popxl.int32)),
        lambda t, x: var_updates.adam_updater(t, x),
        lambda t, x: var_updates.adam_var_update(t, x, tensor(()), tensor(())),
    ],
)
def test_shapes_that_do_not_fit(update: Update):
    with main_graph():
        t, x = tensor((3,)), tensor((2,))
        with pytest.raises(popart.popart_exception):
            update(t, x)
