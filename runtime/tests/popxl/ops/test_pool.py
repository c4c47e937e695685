"""Pooling against windows taken one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import popart
import pytest
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, tensor


def pooled(
    reduce: Any,
    kernel: tuple[int, ...],
    sizes: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    begins: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
) -> Any:
    """``reduce`` of the elements of each window that lie in the input."""
    rank = len(kernel)
    stride, dilation, begins = stride or (1,) * rank, dilation or (1,) * rank, begins or (0,) * rank

    def run(x: np.ndarray) -> np.ndarray:
        result = np.zeros((*x.shape[:2], *sizes))
        for at in itertools.product(*map(range, sizes)):
            inside = [
                [
                    p
                    for j in range(kernel[i])
                    if 0 <= (p := at[i] * stride[i] - begins[i] + j * dilation[i]) < x.shape[i + 2]
                ]
                for i in range(rank)
            ]
            window = x[(slice(None), slice(None), *np.ix_(*inside))]
            result[(..., *at)] = reduce(window, axis=tuple(range(2, 2 + rank)))
        return result

    return run


# input, kernel, arguments, and what they mean: windows, stride, begins, dilation
CASES = [
    ((2, 3, 8, 6), (2, 2), {"stride": (2, 2)}, ((4, 3), (2, 2))),
    ((2, 3, 8, 6), (2, 3), {}, ((7, 4),)),
    ((1, 3, 7, 7), (2, 2), {"stride": (2, 2)}, ((3, 3), (2, 2))),
    ((1, 3, 7, 7), (2, 2), {"stride": (2, 2), "ceil_mode": True}, ((4, 4), (2, 2))),
    (
        (1, 3, 8, 7),
        (3, 3),
        {"stride": (2, 2), "padding": (1, 0, 1, 2)},
        ((4, 4), (2, 2), (1, 0)),
    ),
    (
        (1, 3, 9, 8),
        (3, 2),
        {"dilation": (2, 1), "padding": (2, 1, 0, 0)},
        ((7, 8), (1, 1), (2, 1), (2, 1)),
    ),
    ((1, 2, 7, 8), (3, 3), {"stride": (2, 2), "auto_pad": "same_upper"}, ((4, 4), (2, 2), (1, 0))),
    ((1, 2, 7, 8), (3, 3), {"stride": (2, 2), "auto_pad": "same_lower"}, ((4, 4), (2, 2), (1, 1))),
    ((1, 2, 7, 8), (3, 3), {"stride": (2, 2), "auto_pad": "valid"}, ((3, 3), (2, 2))),
    ((2, 3, 9), (4,), {"stride": (3,), "padding": (1, 1)}, ((3,), (3,), (1,))),
    ((1, 2, 4, 5, 6), (2, 2, 2), {"stride": (2, 1, 2)}, ((2, 4, 3), (2, 1, 2))),
]
POOLS = [(ops.average_pool, np.mean), (ops.max_pool, np.max)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("op", "reduce"), POOLS)
@pytest.mark.parametrize(("shape", "kernel", "arguments", "meaning"), CASES)
def test_pool(
    rng: Generator,
    op: Any,
    reduce: Any,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    arguments: dict[str, Any],
    meaning: tuple[tuple[int, ...], ...],
    dtype: type,
):
    first, second = ([rng.normal(size=shape).astype(dtype)] for _ in "ab")
    oracle = pooled(reduce, kernel, *meaning)
    assert_op(lambda x: op(x, kernel, **arguments), oracle, first, second)


@pytest.mark.parametrize(("op", "reduce"), POOLS)
def test_spread_input_and_padded_result(rng: Generator, op: Any, reduce: Any):
    """With every second element missing, a window of 3 x 3 holds at most 2 x 2 elements."""
    first, second = ([rng.normal(size=(1, 2, 4, 4)).astype(np.float32)] for _ in "ab")

    def oracle(x: np.ndarray) -> np.ndarray:
        spread = np.full((1, 2, 7, 7), np.nan)
        spread[..., ::2, ::2] = x
        lenient = np.nanmean if reduce is np.mean else np.nanmax
        inner = pooled(lenient, (3, 3), (5, 5))(spread)
        return np.pad(inner, [(0, 0), (0, 0), (1, 0), (0, 2)])

    assert_op(
        lambda x: op(x, (3, 3), in_dilations=(2, 2), out_pads=(1, 0, 0, 2)), oracle, first, second
    )


def test_kinds_and_names():
    with main_graph() as graph:
        ops.average_pool(tensor((1, 2, 4, 4)), (2, 2))
        assert last_op(graph) == ("AveragePool", ["averagepool_out"])
        ops.max_pool(tensor((1, 2, 4, 4)), (2, 2))
        assert last_op(graph) == ("MaxPool", ["maxpool_out"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": (2,)},
        {"kernel_size": (9, 2)},
        {"kernel_size": (2, 2), "stride": (1,)},
        {"kernel_size": (2, 2), "padding": (1, 1)},
        {"kernel_size": (2, 2), "storage_order": "column"},
    ],
)
def test_pool_that_does_not_fit(arguments: dict[str, Any]):
    with main_graph(), pytest.raises(popart.popart_exception):
        ops.max_pool(tensor((1, 2, 4, 4)), **arguments)


def test_unknown_padding():
    with main_graph(), pytest.raises(KeyError):
        ops.average_pool(tensor((1, 2, 4, 4)), (2, 2), auto_pad="same")
