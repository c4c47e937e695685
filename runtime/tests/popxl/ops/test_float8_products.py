"""float8 products and convolutions against products of the decoded values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops
from popxl.fp8_utils import host_pow2scale_cast_from_fp8, host_pow2scale_cast_to_fp8
from torch.nn import functional

from runtime.tests.popxl.ops.op_agreement import assert_equal
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

SCALE = -3
FORMATS = [popxl.float8_143, popxl.float8_152]


def torch_op(function: Callable[..., torch.Tensor], **options: Any) -> Callable[..., np.ndarray]:
    return lambda x, w: function(torch.from_numpy(x), torch.from_numpy(w), **options).numpy()


# op, its further arguments, shapes, the same on decoded values
CASES: list[tuple[Any, dict[str, Any], tuple[int, ...], tuple[int, ...], Any]] = [
    (ops.matmul_pow2scaled, {}, (3, 5), (5, 4), np.matmul),
    (ops.matmul_pow2scaled, {}, (2, 3, 5), (2, 5, 4), np.matmul),
    (ops.matmul_pow2scaled, {}, (5,), (2, 5, 4), np.matmul),
    (
        ops.conv_pow2scaled,
        {"stride": (2, 1), "padding": (1, 0, 1, 0)},
        (1, 4, 6, 5),
        (3, 4, 3, 2),
        torch_op(functional.conv2d, stride=(2, 1), padding=(1, 0)),
    ),
    (
        ops.conv_transpose_pow2scaled,
        {"stride": (2, 1), "output_padding": (1, 0)},
        (1, 4, 3, 5),
        (4, 3, 3, 2),
        torch_op(functional.conv_transpose2d, stride=(2, 1), output_padding=(1, 0)),
    ),
]


@pytest.mark.parametrize("right", FORMATS)
@pytest.mark.parametrize("left", FORMATS)
@pytest.mark.parametrize(("op", "arguments", "x_shape", "w_shape", "oracle"), CASES)
def test_product(
    rng: Generator,
    op: Any,
    arguments: dict[str, Any],
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    oracle: Any,
    left: popxl.dtype,
    right: popxl.dtype,
):
    def build(x: popxl.Tensor, w: popxl.Tensor, scale: popxl.Tensor) -> popxl.Tensor:
        zero = popxl.constant(0, popxl.int32)
        x = ops.pow2scale_cast_to_fp8(x, zero, left)
        w = ops.pow2scale_cast_to_fp8(w, zero, right)
        return op(x, w, scale, **arguments)

    def wanted(x: np.ndarray, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
        decoded = (
            host_pow2scale_cast_from_fp8(host_pow2scale_cast_to_fp8(a, dtype), popxl.float64)
            for a, dtype in ((x, left), (w, right))
        )
        return oracle(*decoded) * 2.0 ** float(scale)

    first, second = (
        [rng.normal(size=s).astype(np.float32) for s in (x_shape, w_shape)]
        + [np.array(scale, np.int32)]
        for scale in (SCALE, 2)
    )
    (found,) = run_ops(build, *first)
    assert found.dtype == np.float16
    assert_equal(found, wanted(*first))
    (both,) = run_ops(build, *(np.stack(p) for p in zip(first, second, strict=True)), replicas=2)
    for replica, arrays in enumerate((first, second)):
        assert_equal(both[replica], wanted(*arrays))


@pytest.mark.parametrize(("scale", "fits"), [(-33, False), (-32, True), (31, True), (32, False)])
def test_range_of_the_scale(scale: int, fits: bool):
    def build(scale: popxl.Tensor) -> popxl.Tensor:
        x = popxl.constant(np.zeros((2, 2), np.float32), popxl.float8_143)
        return ops.matmul_pow2scaled(x, x, scale)

    if fits:
        (found,) = run_ops(build, np.array(scale, np.int32))
        np.testing.assert_array_equal(found, 0)
    else:
        with pytest.raises(popart.poplar_application_runtime_error, match="log2_scale"):
            run_ops(build, np.array(scale, np.int32))


def test_the_check_of_the_scale_can_be_switched_off():
    def build(scale: popxl.Tensor) -> popxl.Tensor:
        options = popxl.gir()._pb_ir.getSessionOptions()
        options.throwIfLog2ScaleTensorNotInRange = False
        x = popxl.constant(np.ones((1, 1), np.float32), popxl.float8_143)
        return ops.matmul_pow2scaled(x, x, scale)

    (found,) = run_ops(build, np.array(40, np.int32))
    np.testing.assert_array_equal(found, np.inf)


def test_kinds_names_and_dtypes():
    with main_graph() as graph:
        scale = tensor((), popxl.int32)
        cases = [
            (ops.matmul_pow2scaled, (2, 2), "MatMul", "matmul_pow2scaled_out"),
            (ops.conv_pow2scaled, (1, 1, 2, 2), "Conv", "conv_out"),
            (ops.conv_transpose_pow2scaled, (1, 1, 2, 2), "ConvTranspose", "convtranspose_out"),
        ]
        for op, shape, kind, name in cases:
            x = tensor(shape, popxl.float8_143)
            assert op(x, x, scale).dtype is popxl.float16
            assert last_op(graph) == (kind, [name])


@pytest.mark.parametrize(
    "op", [ops.matmul_pow2scaled, ops.conv_pow2scaled, ops.conv_transpose_pow2scaled]
)
def test_arguments(op: Any):
    with main_graph():
        x, scale = tensor((1, 1, 2, 2), popxl.float8_143), tensor((), popxl.int32)
        half = tensor((1, 1, 2, 2), popxl.float16)
        for pair in ((x, half), (half, x)):
            with pytest.raises(TypeError, match="float8"):
                op(*pair, scale)
        with pytest.raises(TypeError, match="int32"):
            op(x, x, tensor((), popxl.uint32))
        with pytest.raises(ValueError, match="scalar"):
            op(x, x, tensor((1,), popxl.int32))
