"""Matrix products against NumPy, and the checks around them."""

from __future__ import annotations

import numpy as np
import popart
import popxl
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import foreign_tensor, last_op, main_graph, tensor

LONG_SUM_ATOL = 1e-4  # a thousand products of size 1 in float32 that cancel
SHAPES = [
    ((3, 5), (5, 4)),
    ((5,), (5,)),
    ((5,), (5, 4)),
    ((3, 5), (5,)),
    ((2, 3, 5), (5, 4)),
    ((2, 3, 5), (5,)),
    ((5,), (2, 5, 4)),
    ((2, 3, 5), (2, 5, 4)),
    ((4, 1, 3, 5), (2, 5, 4)),
    ((1, 3, 5), (4, 2, 5, 6)),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_matmul(rng: Generator, left: tuple[int, ...], right: tuple[int, ...], dtype: type):
    first, second = ([rng.normal(size=s).astype(dtype) for s in (left, right)] for _ in "ab")
    assert_op(ops.matmul, np.matmul, first, second)


def test_matmul_of_integers(rng: Generator):
    first, second = (
        [rng.integers(-9, 9, s).astype(np.int32) for s in ((3, 5), (5, 4))] for _ in "ab"
    )
    assert_op(ops.matmul, np.matmul, first, second)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_weight_beyond_one_tile(rng: Generator, transposed: bool):
    """More than 2**20 half elements: widened tile by tile, from either layout."""
    x, y = (rng.normal(size=(7, 1030)).astype(np.float16) for _ in "ab")
    w, v = (rng.normal(size=(1100, 1030)).astype(np.float16) for _ in "ab")

    def build(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.matmul(x, ops.transpose_(w) if transposed else w)

    first, second = ([x, w], [y, v]) if transposed else ([x, w.T], [y, v.T])
    assert_op(
        build, lambda x, w: x @ (w.T if transposed else w), first, second, half_atol=LONG_SUM_ATOL
    )


def test_sums_are_not_rounded_to_half_in_between():
    """4096 ones and a half: a float16 sum would stop at 2048."""
    x = np.ones((1, 4097), np.float16)
    w = np.ones((4097, 1), np.float16)
    w[-1] = 0.5
    wanted = np.float16(4096.5)
    assert_op(ops.matmul, lambda x, w: np.full((1, 1), wanted, np.float64), [x, w], [x, w])


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_shape_at_build_time(left: tuple[int, ...], right: tuple[int, ...]):
    wanted = np.matmul(np.zeros(left), np.zeros(right)).shape
    with main_graph():
        assert ops.matmul(tensor(left), tensor(right)).shape == wanted


def test_kind_name_and_output_type():
    with main_graph() as graph:
        out = ops.matmul(tensor((2, 3)), tensor((3, 2)), output_type=popxl.float16)
        assert out.dtype is popxl.float16
        assert last_op(graph) == ("MatMul", ["matmul_out"])


@pytest.mark.parametrize(
    ("left", "right"), [((), (2,)), ((2,), ()), ((2, 3), (2, 3)), ((2, 4, 3), (3, 3, 2))]
)
def test_shapes_that_do_not_fit(left: tuple[int, ...], right: tuple[int, ...]):
    with main_graph(), pytest.raises(popart.popart_exception):
        ops.matmul(tensor(left), tensor(right))


def test_partials():
    with main_graph() as graph:
        options = graph.ir._pb_ir.getSessionOptions()
        x = tensor((2, 2))
        for option, wanted in [("", "float32"), ("FLOAT", "float32"), ("Half", "float16")]:
            options.partialsTypeMatMuls = option
            ops.matmul(x, x)
            assert graph._record.ops[-1].attrs["partials"] == wanted
        with pytest.raises(ValueError, match="must be float16 or float32"):
            ops.matmul(x, x, partials_type=popxl.int32)
        options.partialsTypeMatMuls = "quarter"
        with pytest.raises(ValueError, match="quarter"):
            ops.matmul(x, x)


def test_arguments_are_tensors_of_the_graph():
    other = foreign_tensor()
    with main_graph():
        x = tensor((2, 2))
        with pytest.raises(TypeError, match="rhs"):
            ops.matmul(x, np.zeros((2, 2)))
        with pytest.raises(ValueError, match="lhs"):
            ops.matmul(other, x)
