"""Products take what is added to them, and the activation behind; sums become one."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl_torch.passes.fusing import assert_fused_agrees, fused, kinds

ROWS, INNER, COLUMNS = 3, 4, 5
ACTIVATIONS = {None: lambda t: t, "Gelu": ops.gelu, "Relu": ops.relu}


def tensors(rng: Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.normal(size=shape) for shape in shapes]


@pytest.fixture
def arrays(rng: Generator) -> list[np.ndarray]:
    """x, w, a bias and a residual."""
    return tensors(rng, (ROWS, INNER), (INNER, COLUMNS), (COLUMNS,), (ROWS, COLUMNS))


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias_first", [False, True])
def test_bias_residual_activation(
    arrays: list[np.ndarray], bias_first: bool, activation: str | None, dtype: popxl.dtype
):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, r: popxl.Tensor) -> popxl.Tensor:
        y = b + x @ w if bias_first else x @ w + b
        return ACTIVATIONS[activation](r + y)

    (node,) = fused(body, *arrays, fusions=("linear",), dtype=dtype)
    assert node.kind == "Linear"
    assert node.attrs == {"product": "MatMul", "activation": activation}
    assert len(node.inputs) == 4
    assert_fused_agrees(body, *arrays, dtype=dtype)


def test_axes_in_front(rng: Generator):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        return ops.relu(x @ w + b)

    arrays = tensors(rng, (2, ROWS, INNER), (INNER, COLUMNS), (COLUMNS,))
    assert kinds(fused(body, *arrays, fusions=("linear",))) == ["Linear"]
    assert_fused_agrees(body, *arrays)


@pytest.mark.parametrize("own", [(0,), (1,), (0, 1), (0, 2), (0, 1, 2), (1, 2), (0, 1, 2, 3)])
def test_replicas_that_differ(arrays: list[np.ndarray], own: tuple[int, ...]):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, r: popxl.Tensor) -> popxl.Tensor:
        return ops.gelu(x @ w + b + r)

    arrays = [np.stack([a, 2 * a]) if i in own else a for i, a in enumerate(arrays)]
    assert "Linear" in kinds(fused(body, *arrays, fusions=("linear",), replicas=2, own=own))
    assert_fused_agrees(body, *arrays, replicas=2, own=own)


@pytest.mark.parametrize("reduced", [False, True])
def test_joined_shards(arrays: list[np.ndarray], reduced: bool):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        y = x @ w
        return ops.relu((ops.collectives.replicated_all_reduce(y) if reduced else y) + b)

    own = (0, 1) if reduced else (1, 2)
    arrays = [np.stack([a, 2 * a]) if i in own else a for i, a in enumerate(arrays[:3])]
    (node,) = fused(body, *arrays, fusions=("linear",), replicas=2, own=own)
    assert node.attrs["product"] == ("MatMulReduced" if reduced else "MatMulColumns")
    assert_fused_agrees(body, *arrays, replicas=2, own=own)


def test_what_differs_by_replica_is_not_added_to_a_sum_over_them(arrays: list[np.ndarray]):
    def body(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        return ops.collectives.replicated_all_reduce(x @ w) + b

    own = (0, 1, 2)
    arrays = [np.stack([a, 2 * a]) for a in arrays[:3]]
    nodes = fused(body, *arrays, fusions=("linear",), replicas=2, own=own)
    assert kinds(nodes) == ["MatMulReduced", "Add"]
    assert_fused_agrees(body, *arrays, replicas=2, own=own)


def _used_twice(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, r: popxl.Tensor) -> tuple:
    y = x @ w
    return y + b, y


def _spread_by_the_sum(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, r: popxl.Tensor):
    return x[0:1] @ w + r


def _whole_numbers(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor, r: popxl.Tensor):
    return ops.cast(x, popxl.int32) @ ops.cast(w, popxl.int32) + 1


@pytest.mark.parametrize("body", [_used_twice, _spread_by_the_sum, _whole_numbers])
def test_what_is_left_alone(arrays: list[np.ndarray], body):
    assert "Linear" not in kinds(fused(body, *arrays, fusions=("linear",)))


def test_sums(rng: Generator):
    def body(a: popxl.Tensor, b: popxl.Tensor, c: popxl.Tensor, row: popxl.Tensor) -> popxl.Tensor:
        return row + (c + (a + b))

    arrays = tensors(rng, (3, 4), (3, 4), (3, 4), (4,))
    (node,) = fused(body, *arrays, fusions=("sums",))
    assert node.kind == "Sum"
    assert len(node.inputs) == 4
    assert_fused_agrees(body, *arrays)


def test_sums_that_grow_are_left_alone(rng: Generator):
    def body(a: popxl.Tensor, b: popxl.Tensor, c: popxl.Tensor) -> popxl.Tensor:
        return (a + b) + c

    arrays = tensors(rng, (4,), (4,), (3, 4))
    assert kinds(fused(body, *arrays, fusions=("sums",))) == ["Add", "Add"]
