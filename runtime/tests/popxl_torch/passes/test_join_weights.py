"""Matrices of joined products are joined by steps of their own, as views where that is possible."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops
from popxl_torch.ir.records import Spec
from popxl_torch.kernels.joined import columns_product, join_columns, join_rows, reduced_product
from popxl_torch.kernels.registry import Site
from popxl_torch.passes.mark_uniform import varying_sources
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.ssa import walk

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, inputs_of, store
from runtime.tests.popxl_torch.programs import build

REPLICAS, ROWS, INNER, COLUMNS = 2, 3, 4, 5
ATOL = 1e-5  # sums of four products of size 1 in float32
SITE = Site("", {}, [], [Spec((ROWS, COLUMNS), "float32")], REPLICAS)


def columns(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, row: popxl.Tensor) -> popxl.Tensor:
    return ops.relu(x @ w + row + b)


def rows(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, row: popxl.Tensor) -> popxl.Tensor:
    return ops.collectives.replicated_all_reduce(ops.relu(x) @ w) + row


def tensors(rng: Generator, own: tuple[int, ...]) -> list[np.ndarray]:
    shapes = ((ROWS, INNER), (INNER, COLUMNS), (COLUMNS,), (COLUMNS,))
    return [
        rng.normal(size=(REPLICAS, *shape) if i in own else shape) for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize(
    ("body", "own", "expected"),
    [
        (columns, (1, 2), {"JoinColumns": [(INNER, 10), (10,)]}),
        (rows, (0, 1), {"JoinRows": [(8, COLUMNS)]}),
    ],
)
def test_weights_and_biases(rng: Generator, body, own: tuple[int, ...], expected: dict):
    arrays = tensors(rng, own)

    def fill(ir: popxl.Ir) -> None:
        store(body(*inputs_of(ir, arrays, popxl.float32, own)))

    program = build(fill, REPLICAS)
    variables = [v for v in program.main.values.values() if v.kind == "variable"]
    functional, _ = specialise(to_functional(program), varying_sources(variables))
    found: dict[str, list] = {}
    for node in walk(functional.main):
        if node.kind.startswith("Join"):
            (out,) = node.outputs
            assert not out.varying
            found.setdefault(node.kind, []).append(out.spec.shape)
    assert found == expected
    assert_fused_agrees(body, *arrays, replicas=REPLICAS, own=own)


def test_a_product_of_a_value_with_itself(rng: Generator):
    def body(x: popxl.Tensor) -> popxl.Tensor:
        return ops.collectives.replicated_all_reduce(x @ x)

    x = rng.normal(size=(REPLICAS, INNER, INNER))
    assert_fused_agrees(body, x, replicas=REPLICAS, own=(0,))


@pytest.mark.parametrize("joinable", [True, False])
def test_columns_of_any_layout(rng: Generator, joinable: bool):
    x = torch.from_numpy(rng.normal(size=(ROWS, INNER))).float()
    w = torch.from_numpy(rng.normal(size=(REPLICAS, COLUMNS, INNER))).float().mT
    w = w if joinable else w.contiguous()
    joined = join_columns(SITE, 0)(w)
    assert joined.dim() == (2 if joinable else 3)
    assert joined.data_ptr() == w.data_ptr()
    wanted = torch.cat([x @ shard for shard in w], 1)
    torch.testing.assert_close(columns_product(x, joined), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("joinable", [True, False])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_rows_of_any_layout(rng: Generator, joinable: bool, side_by_side: bool):
    x = torch.from_numpy(rng.normal(size=(ROWS, REPLICAS, INNER))).float().transpose(0, 1)
    x = x if side_by_side else x.contiguous()
    w = torch.from_numpy(rng.normal(size=(REPLICAS, INNER, COLUMNS))).float()
    w = w if joinable else w.mT.contiguous().mT
    joined = join_rows(SITE, 0)(w)
    assert joined.dim() == (2 if joinable else 3)
    assert joined.data_ptr() == w.data_ptr()
    wanted = (x @ w).sum(0)
    torch.testing.assert_close(reduced_product(x, joined), wanted, rtol=0, atol=ATOL)
