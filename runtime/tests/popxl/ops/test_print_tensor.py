"""Printing while a program runs."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, run_replicas, tensor


def test_prints_values_under_a_title_and_returns_a_copy(capfd: pytest.CaptureFixture[str]):
    x = np.array([[1.5, -2.0], [0.25, 1e-3]], np.float16)
    (found,) = run_ops(lambda t: ops.print_tensor(t, "weights"), x)
    np.testing.assert_array_equal(found, x)
    assert capfd.readouterr().err == "weights: [[1.5 -2]\n [0.25 0.0010004044]]\n"


def test_the_default_title_names_the_tensor(capfd: pytest.CaptureFixture[str]):
    run_ops(lambda t: ops.print_tensor(ops.rename(t, "y")), np.array(3, np.int32))
    assert capfd.readouterr().err == "print_y: 3\n"


def test_prints_without_a_use_of_the_result(capfd: pytest.CaptureFixture[str]):
    def build(t: popxl.Tensor) -> popxl.Tensor:
        ops.print_tensor(t, "unused")
        return t

    run_ops(build, np.array([True, False]))
    assert capfd.readouterr().err == "unused: [True False]\n"


def test_every_replica_prints_its_own_values(capfd: pytest.CaptureFixture[str]):
    run_replicas(lambda t: ops.print_tensor(t, "x"), np.array([[1], [2]], np.int32))
    assert capfd.readouterr().err == "x: [1]\nx: [2]\n"


def test_print_self_can_be_switched_off(capfd: pytest.CaptureFixture[str]):
    run_ops(lambda t: ops.print_tensor(t, print_self=False), np.ones(2, np.float32))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"float_format": "fixed", "digits": 2}, "[0.33 100.00]"),
        ({"float_format": "scientific", "digits": 1}, "[3.3e-01 1.0e+02]"),
        ({"digits": 3}, "[0.333 100]"),
        ({"separator": ",", "open_bracket": "(", "close_bracket": ")", "digits": 1}, "(0.3,1e+02)"),
    ],
)
def test_formats(options: dict, wanted: str, capfd: pytest.CaptureFixture[str]):
    run_ops(lambda t: ops.print_tensor(t, "x", **options), np.array([1 / 3, 100], np.float32))
    assert capfd.readouterr().err == f"x: {wanted}\n"


def test_long_tensors_are_abbreviated(capfd: pytest.CaptureFixture[str]):
    x = np.arange(20, dtype=np.int32)
    run_ops(lambda t: ops.print_tensor(t, "x", summarise_threshold=19, edge_items=2), x)
    assert capfd.readouterr().err == "x: [0 1 ... 18 19]\n"
    run_ops(lambda t: ops.print_tensor(t, "x", summarise_threshold=20, max_line_width=200), x)
    assert capfd.readouterr().err == f"x: [{' '.join(str(n) for n in x)}]\n"


def test_errors():
    with main_graph() as graph:
        t = tensor((2,))
        ops.print_tensor(t)
        assert last_op(graph) == ("PrintTensor", ["print_out"])
        for name in ("separator", "open_bracket", "close_bracket"):
            with pytest.raises(ValueError, match=f"`{name}` of print_tensor must be one character"):
                ops.print_tensor(t, **{name: "::"})
        with pytest.raises(KeyError):
            ops.print_tensor(t, float_format="round")
