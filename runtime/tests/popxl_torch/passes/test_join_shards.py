"""Products over shards become one product each, and only where that is the same sum."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.ir.records import Program
from popxl_torch.passes.mark_uniform import varying_sources
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.ssa import walk

from runtime.tests.popxl_torch.programs import build, tensor_parallel_mlp


def _joined(program: Program) -> list[str]:
    variables = [v for v in program.main.values.values() if v.kind == "variable"]
    functional, _ = specialise(to_functional(program), varying_sources(variables), fusions=())
    hidden = ("State", "JoinColumns", "JoinRows")
    return [
        node.kind for node in walk(functional.main) if not any(text in node.kind for text in hidden)
    ]


def _shards(ir: popxl.Ir, *shape: int) -> popxl.Tensor:
    data = np.zeros((ir.replication_factor, *shape), "float32")
    return popxl.variable(data, replica_grouping=ir.replica_grouping(group_size=1))


def _store(t: popxl.Tensor) -> None:
    ops.host_store(popxl.d2h_stream(t.shape, t.dtype), t)


def test_column_and_row_shards() -> None:
    assert _joined(build(tensor_parallel_mlp, replicas=4)) == [
        "HostLoad",
        "MatMulColumns",
        "Relu",
        "MatMulReduced",
        "HostStore",
    ]


def test_one_replica_is_left_alone() -> None:
    kinds = _joined(build(tensor_parallel_mlp, replicas=1))
    assert kinds == ["HostLoad", "MatMul", "Relu", "MatMul", "ReplicatedAllReduce", "HostStore"]


def test_a_sum_of_partial_sums_is_split() -> None:
    def body(ir: popxl.Ir) -> None:
        a, b = _shards(ir, 3, 4), _shards(ir, 4, 5)
        _store(ops.collectives.replicated_all_reduce(a @ b + ops.relu(a) @ b))

    kinds = _joined(build(body, replicas=2))
    assert kinds == ["MatMulReduced", "Relu", "MatMulReduced", "Add", "HostStore"] or kinds == [
        "Relu",
        "MatMulReduced",
        "MatMulReduced",
        "Add",
        "HostStore",
    ]


@pytest.mark.parametrize("reason", ["used twice", "maximum", "half the replicas", "bias broadcast"])
def test_what_must_not_be_joined(reason: str) -> None:
    def body(ir: popxl.Ir) -> None:
        a, b = _shards(ir, 3, 4), _shards(ir, 4, 5)
        partial = a @ b
        if reason == "used twice":
            _store(partial)
        if reason == "bias broadcast":
            partial = partial + _shards(ir, 5)
        op = "max" if reason == "maximum" else "add"
        half = ir.replica_grouping(group_size=2) if reason == "half the replicas" else None
        _store(ops.collectives.replicated_all_reduce(partial, op, half))

    kinds = _joined(build(body, replicas=4))
    assert "MatMul" in kinds
    assert "MatMulReduced" not in kinds
