"""Count the floating-point operations of a program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import popxl
from popxl.utils import table_to_string
from popxl_addons.utils import _base_graph_name

__all__ = [
    "evaluate_FLOPs",
    "evaluate_ir_FLOPs",
    "format_flops_scientific",
    "print_FLOPs",
    "total_FLOPs",
]

Format = Literal["K", "M", "G", "T", "nearest3"]
_EXPONENTS = {"K": 3, "M": 6, "G": 9, "T": 12}


def matmul_flops(op: Any) -> int:
    """Two per multiplied pair."""
    return 2 * op.inTensor(0).info.shape()[-1] * op.outTensor(0).info.nelms()


def elementwise_binary_flops(op: Any) -> int:
    """One per element of the result."""
    return op.outTensor(0).info.nelms()


def group_norm_flops(op: Any) -> int:
    """Mean, variance and scaling of a group normalisation."""
    shape, out = op.inTensor(0).info.shape(), op.outTensor(0).info
    means = op.outTensor(1).info.nelms()
    group = shape[-1] * shape[-2] // (means // shape[0])
    return group + (2 * group + 2 * means) + 4 * out.nelms()


FLOPS_FNS: dict[str, Callable[[Any], int]] = {
    "MatMul": matmul_flops,
    "Add": elementwise_binary_flops,
    "Sub": elementwise_binary_flops,
    "Mul": elementwise_binary_flops,
    "Div": elementwise_binary_flops,
    "GroupNormalization": group_norm_flops,
}


def _scaled(flops: Any, times: int) -> Any:
    if isinstance(flops, dict):
        return {key: _scaled(value, times) for key, value in flops.items()}
    return flops * times


def _evaluate(graph: Any) -> dict[str, Any]:
    """`evaluate_FLOPs` of a private graph handle."""
    result: dict[str, Any] = {"TOT": 0}
    for op in graph.getOps():
        kind = op.opType()
        called = op.getCalledGraphs()
        if not called:
            flops = FLOPS_FNS.get(kind, lambda op: 0)(op)
            result.setdefault(kind, {})[op.id] = flops
            result["TOT"] += flops
        for callee in called:
            times = op.getTripCountValue() if kind == "Loop" else 1
            inner = _scaled(_evaluate(callee), times)
            name = _base_graph_name(callee.id.str())
            result["TOT"] += inner.pop("TOT")
            for inner_kind, entries in inner.items():
                result.setdefault(inner_kind, {})[f"{kind}_{op.id}({name})"] = entries
    return result


def evaluate_FLOPs(graph: popxl.Graph) -> dict[str, Any]:
    """Floating-point operations of a graph and what it calls, on one replica.

    Matmuls, Add, Sub, Mul, Div and group normalisations count; all else is 0.

    Returns:
        Op kind to {op id: FLOPs}, with called graphs as nested dicts under
        `<kind>_<id>(<graph>)`, and "TOT".
    """
    return _evaluate(graph._pb_graph)


def evaluate_ir_FLOPs(ir: popxl.Ir) -> dict[str, Any]:
    """`evaluate_FLOPs` of the main graph times the number of replicas."""
    return _scaled(evaluate_FLOPs(ir.main_graph), ir.replication_factor)


def total_FLOPs(ir: popxl.Ir) -> int:
    """Floating-point operations of one run on all replicas."""
    return evaluate_ir_FLOPs(ir)["TOT"]


def _sum(entries: Any) -> int:
    return sum(map(_sum, entries.values())) if isinstance(entries, dict) else entries


def _flat(kind: str, entries: dict[Any, Any], path: str = "") -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    for key, value in entries.items():
        if isinstance(value, dict):
            rows += _flat(kind, value, f"{path}{key}/")
        else:
            rows.append((f"{path}{kind}_{key}", value))
    return rows


def print_FLOPs(
    flops_breakdown: dict[str, Any],
    mode: Literal["type", "flat"] = "type",
    numerical_format: Format = "nearest3",
) -> None:
    """Print a table.

    Args:
        flops_breakdown: from `evaluate_FLOPs`.
        mode: a row for each op kind ("type") or each op ("flat").
        numerical_format: see `format_flops_scientific`.

    Raises:
        ValueError: another mode or format.
    """
    kinds = {kind: v for kind, v in flops_breakdown.items() if kind != "TOT"}
    if mode == "type":
        rows = [(kind, _sum(entries)) for kind, entries in kinds.items()]
    elif mode == "flat":
        rows = [row for kind, entries in kinds.items() for row in _flat(kind, entries)]
    else:
        raise ValueError(f"print_FLOPs: mode is 'type' or 'flat', got {mode!r}")
    rows.append(("TOT", flops_breakdown["TOT"]))
    table = [(name, format_flops_scientific(v, numerical_format)) for name, v in rows]
    print(table_to_string([("Op", "FLOPs"), *table]))


def format_flops_scientific(val: float, format: Format = "nearest3") -> str:
    """A number with three decimals and an exponent.

    Args:
        val: the number.
        format: K, M, G or T for exponent 3, 6, 9 or 12; "nearest3" for the multiple of three
            that the number of digits gives (123 is 0.123E+03).

    Raises:
        ValueError: another format.
    """
    if format == "nearest3":
        digits = int(math.log10(abs(val))) + 1 if abs(val) >= 1 else 0
        exponent = digits // 3 * 3
    elif format in _EXPONENTS:
        exponent = _EXPONENTS[format]
    else:
        raise ValueError(
            f"format_flops_scientific: {format!r} is none of {(*_EXPONENTS, 'nearest3')}"
        )
    return f"{val / 10**exponent:.3f}E+{exponent:02d}"
