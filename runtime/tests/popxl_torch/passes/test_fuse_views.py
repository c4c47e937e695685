"""Steps that only say where elements lie: fewer of them, the same elements."""

from __future__ import annotations

import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds


def _reshapes(x: popxl.Tensor) -> popxl.Tensor:
    return ops.reshape(ops.reshape(ops.reshape(x, (6, 4)), (24,)), (4, 6))


def _there_and_back(x: popxl.Tensor) -> popxl.Tensor:
    return ops.relu(ops.reshape(ops.reshape(x, (24,)), x.shape))


def _transposes(x: popxl.Tensor) -> popxl.Tensor:
    return ops.transpose(ops.transpose(x, (2, 0, 1)), (2, 0, 1))


def _turned_back(x: popxl.Tensor) -> popxl.Tensor:
    return ops.relu(ops.transpose(ops.transpose(x, (2, 0, 1)), (1, 2, 0)))


def _ones(x: popxl.Tensor) -> popxl.Tensor:
    return ops.transpose(ops.reshape(x, (2, 1, 12)), (1, 0, 2))


def _whole(x: popxl.Tensor) -> popxl.Tensor:
    return ops.relu(x[0:2, :, 0:4])


def _reversed(x: popxl.Tensor) -> popxl.Tensor:
    return ops.slice(x, None, None, [-1], [1])


FORMS = {
    _reshapes: ["Reshape"],
    _there_and_back: ["Relu"],
    _transposes: ["Transpose"],
    _turned_back: ["Relu"],
    _ones: ["Reshape"],
    _whole: ["Relu"],
    _reversed: ["Slice"],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(rng: Generator, form):
    x = rng.normal(size=(2, 3, 4))
    assert kinds(fused(form, x, fusions=("views",))) == FORMS[form]
    assert_fused_agrees(form, x)


def test_uses_in_branches_and_results_are_renamed(rng: Generator):
    def double(x: popxl.Tensor) -> popxl.Tensor:
        return ops.reshape(ops.reshape(x, (24,)), x.shape) * 2.0

    def same(x: popxl.Tensor) -> popxl.Tensor:
        return ops.reshape(x, x.shape)

    def body(x: popxl.Tensor) -> popxl.Tensor:
        x = ops.reshape(x + 1.0, x.shape)
        ir = popxl.gcg().ir
        condition = ops.greater(ops.sum(x), popxl.constant(0.0))
        graphs = ir.create_graph(double, x), ir.create_graph(same, x)
        (y,) = ops.conditional(condition, *graphs, [x], [x])
        return ops.repeat(ir.create_graph(same, y), 2, y)[0]

    x = rng.normal(size=(2, 3, 4))
    assert "Reshape" not in kinds(fused(body, x, fusions=("views",)))
    assert_fused_agrees(body, x)
