"""Counting of floating-point operations."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import (
    evaluate_FLOPs,
    evaluate_ir_FLOPs,
    format_flops_scientific,
    print_FLOPs,
    total_FLOPs,
)


def square(x: popxl.Tensor) -> popxl.Tensor:
    return x @ x


MATMUL = 2 * 4 * 16


@pytest.fixture
def x(ir4: popxl.Ir) -> popxl.Tensor:
    return popxl.variable(np.zeros((4, 4), "float32"))


def test_ops_that_count(ir4: popxl.Ir, x: popxl.Tensor):
    flops = evaluate_FLOPs(popxl.gcg())
    assert flops == {"TOT": 0}
    _ = x @ x, x + x, x - x, x * x, x / x, ops.relu(x)
    flops = evaluate_FLOPs(popxl.gcg())
    kinds = [kind for kind in flops if kind != "TOT"]
    counted = {kind: sum(flops[kind].values()) for kind in kinds}
    assert counted == {"MatMul": MATMUL, "Add": 16, "Sub": 16, "Mul": 16, "Div": 16, "Relu": 0}
    assert flops["TOT"] == MATMUL + 64
    assert list(flops["MatMul"]) == [100]


def test_calls_are_nested_and_loops_counted(ir4: popxl.Ir, x: popxl.Tensor):
    graph = ir4.create_graph(square, x)
    ops.call(graph, x)
    ops.repeat(graph, 3, x)
    matmuls = evaluate_FLOPs(popxl.gcg())["MatMul"]
    call, loop = matmuls
    assert call.startswith("Call_")
    assert call.endswith("(square)")
    assert list(matmuls[call].values()) == [MATMUL]
    assert loop.startswith("Loop_")
    assert list(next(iter(matmuls[loop].values())).values()) == [3 * MATMUL]
    assert total_FLOPs(ir4) == 4 * 4 * MATMUL
    assert evaluate_ir_FLOPs(ir4)["TOT"] == total_FLOPs(ir4)


def test_group_norm(ir4: popxl.Ir):
    x = popxl.variable(np.zeros((3, 8), "float32"))
    w = popxl.variable(np.zeros(8, "float32"))
    ops.group_norm(x, w, w, num_groups=2)
    means, group = 3 * 2, 8 * 3 // 2
    assert evaluate_FLOPs(popxl.gcg())["TOT"] == group + (2 * group + 2 * means) + 4 * 24


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (123, "nearest3", "0.123E+03"),
        (12, "nearest3", "12.000E+00"),
        (0, "nearest3", "0.000E+00"),
        (1234, "nearest3", "1.234E+03"),
        (12_345_678_901, "nearest3", "12.346E+09"),
        (1234, "K", "1.234E+03"),
        (1234, "M", "0.001E+06"),
        (5e9, "G", "5.000E+09"),
        (5e9, "T", "0.005E+12"),
    ],
)
def test_numbers(value: float, kind: str, text: str):
    assert format_flops_scientific(value, kind) == text  # type: ignore[arg-type]


def test_tables(ir4: popxl.Ir, x: popxl.Tensor, capsys: pytest.CaptureFixture):
    ops.call(ir4.create_graph(square, x), x)
    flops = evaluate_FLOPs(popxl.gcg())
    print_FLOPs(flops)
    by_kind = capsys.readouterr().out
    assert "MatMul" in by_kind
    assert "0.128E+03" in by_kind
    print_FLOPs(flops, mode="flat", numerical_format="M")
    flat = capsys.readouterr().out
    assert "(square)/MatMul_" in flat
    assert "E+06" in flat
    for arguments in ({"mode": "other"}, {"numerical_format": "P"}):
        with pytest.raises(ValueError, match=r"other|'P'"):
            print_FLOPs(flops, **arguments)
