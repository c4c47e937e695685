"""Streams of one tensor, formats, and helpers."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons.ops import fp8_utils
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.cross_entropy_sharded_wr_loss.cross_entropy_sharded_wr_loss import handle_ipus
from popxl_addons.ops.grad_reduce_square_add import grad_reduce_square_add
from popxl_addons.ops.layer_norm_distributed import layer_norm_distributed
from popxl_addons.ops.static_sparse_ops import dense_const_sparse_matmul, random_sparse


def test_host_load_and_store(ir: popxl.Ir, rng: np.random.Generator):
    x = rng.normal(size=(2, 3))
    data, stream, tensor = addons.host_load(x, popxl.float16, "x")
    out = addons.host_store(tensor)
    assert (data.dtype, stream.shape, stream.dtype) == (np.float16, (2, 3), popxl.float16)
    assert stream.tensor_id == "x_stream"
    assert out.tensor_id == f"{tensor.name}_stream"
    with popxl.Session(ir, "ipu_hw") as session:
        np.testing.assert_array_equal(session.run({stream: data})[out], x.astype("float16"))


@pytest.mark.parametrize("name", ["float8_143_def", "float8_152_def", "ieee_fp16_denorms"])
def test_largest_values_follow_from_the_bits(name: str):
    f = getattr(fp8_utils, name)
    assert f.max_value == (2 - 2.0**-f.num_mantissa_bits) * 2.0**f.max_exp
    bits = f.num_exp_bits + f.num_mantissa_bits
    assert bits == (15 if name.startswith("ieee") else 7)


def test_random_sparse(rng: np.random.Generator):
    np.random.seed(int(rng.integers(1000)))  # noqa: NPY002 - the state that the draw uses
    dense = np.ones((200, 100))
    assert random_sparse(dense, 0.3) is dense
    # Five standard deviations of 20,000 draws.
    assert abs(dense.mean() - 0.3) < 0.02
    assert random_sparse(np.ones(5), 0.0).sum() == 1


def test_handle_ipus(ir: popxl.Ir):
    t = popxl.variable(np.zeros(2, "float32"))
    assert handle_ipus([t, t], [3, 4]) == [3, 4]
    with popxl.ipu(2):
        placed = t + t
    assert handle_ipus([placed], None) == [2]
    with pytest.raises(ValueError, match="Could not automatically infer"):
        handle_ipus([t], None)


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16])
def test_grad_reduce_square_add(dtype: Any, ir: popxl.Ir, run: Any, rng: np.random.Generator):
    # Squares of these do not fit into float16.
    x = (300 * rng.normal(size=(3, 4))).astype(dtype.as_numpy())
    t = popxl.variable(x)
    scale = popxl.constant(np.array([8], "float16"))
    outputs = [grad_reduce_square_add(t, 8), grad_reduce_square_add(t, scale)]
    expected = (x.astype("float64") ** 2).sum() / 64
    for y, result in zip(outputs, run(outputs), strict=True):
        assert (y.shape, y.dtype) == ((), popxl.float32)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16])
def test_layer_norm_distributed(dtype: Any, ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    pair = ir4.replica_grouping(stride=2, group_size=2)
    x = (3 + 2 * rng.normal(size=(4, 5, 6))).astype(dtype.as_numpy())
    w, b = rng.normal(size=(2, 4, 6)).astype(dtype.as_numpy())
    streams = [popxl.h2d_stream(a.shape[1:], dtype) for a in (x, w, b)]
    y = layer_norm_distributed(*[ops.host_load(s) for s in streams], 0.1, pair)
    assert (y.shape, y.dtype) == ((5, 6), dtype)
    (result,) = run([y], dict(zip(streams, (x, w, b), strict=True)))
    for group in ([0, 2], [1, 3]):
        rows = np.concatenate(x[group], axis=1).astype("float64")
        normal = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 0.1)
        expected = normal * np.concatenate(w[group]) + np.concatenate(b[group])
        tolerance = 1e-5 if dtype == popxl.float32 else 4e-3
        ours = np.concatenate(result[group], axis=1)
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ignored", [None, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_sharded_loss(
    ignored: int | None, reduction: Any, ir4: popxl.Ir, run: Any, rng: np.random.Generator
):
    logits = (5 * rng.normal(size=(6, 12))).astype("float32")
    labels = np.array([0, 7, 11, 3, 7, 5], "int32")
    offsets = 3 * np.arange(4, dtype="int32")[:, None]
    x, i = popxl.h2d_stream((6, 3), popxl.float32), popxl.h2d_stream((6,), popxl.int32)
    o = popxl.h2d_stream((1,), popxl.int32)
    inputs = {x: addons.shard(logits, 4, 1), i: labels - offsets}
    ignore = None
    if ignored is not None:
        ignore, inputs[o] = ops.host_load(o), ignored - offsets
    loss = cross_entropy_sharded_loss(
        ops.host_load(x), ops.host_load(i), ignore, reduction=reduction
    )
    (result,) = run([loss], inputs)
    exact = logits.astype("float64")
    losses = np.log(np.exp(exact).sum(1)) - exact[np.arange(6), labels]
    counted = np.ones(6) if ignored is None else labels != ignored
    expected = losses * counted
    if reduction != "none":
        expected = expected.sum() / (counted.sum() if reduction == "mean" else 1)
    np.testing.assert_allclose(
        result, np.broadcast_to(expected, (4, *loss.shape)), rtol=1e-5, atol=1e-5
    )


def test_cross_entropy_sharded_loss_errors(ir4: popxl.Ir):
    x = popxl.constant(np.zeros((6, 3), "float32"))
    indices = popxl.constant(np.zeros(6, "int32"))
    with pytest.raises(popart.popart_exception, match=r"got \(6,\) and \(6, 3\)"):
        cross_entropy_sharded_loss(indices, x)
    with pytest.raises(ValueError, match="Not a valid reduction"):
        cross_entropy_sharded_loss(x, indices, reduction="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "largest"), [(popxl.float8_143, 240), (popxl.float8_152, 57344)])
@pytest.mark.parametrize("source", [popxl.float16, popxl.float32])
def test_fp8_amax_scale(
    dtype: Any, largest: int, source: Any, ir: popxl.Ir, run: Any, rng: np.random.Generator
):
    x = rng.normal(size=(3, 5)).astype(source.as_numpy())
    scale = addons.fp8_amax_scale(popxl.variable(x), dtype)
    tiny = addons.fp8_amax_scale(popxl.variable(np.float32(1e-30)), dtype)
    assert (scale.shape, scale.dtype) == ((), popxl.int32)
    result, clipped = run([scale, tiny])
    assert np.abs(x).max() * 2.0**result <= largest < np.abs(x).max() * 2.0 ** (result + 1)
    assert clipped == 31


def test_fp8_amax_scale_errors(ir: popxl.Ir):
    with pytest.raises(RuntimeError, match="float16 or float32"):
        addons.fp8_amax_scale(popxl.variable(np.int32(3)))
    with pytest.raises(ValueError, match="dtype is one of"):
        addons.fp8_amax_scale(popxl.variable(np.float32(3)), popxl.float16)


class Csr:
    """What is used of scipy's CSR matrix."""

    def __init__(self, dense: np.ndarray) -> None:
        self.shape = dense.shape
        self._dense = dense

    def toarray(self) -> np.ndarray:
        return self._dense


@pytest.mark.parametrize("lead", [(), (1,)])
def test_dense_const_sparse_matmul(lead: tuple, ir: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.normal(size=(*lead, 3, 4)).astype("float32")
    sparse = random_sparse(rng.normal(size=(4, 5)).astype("float32"))
    y = dense_const_sparse_matmul(popxl.variable(x), Csr(sparse), 5)
    (result,) = run([y])
    np.testing.assert_allclose(result, x @ sparse, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"rhs is \(k, 6\), got \(4, 5\)"):
        dense_const_sparse_matmul(popxl.constant(x), Csr(sparse), 6)
    with pytest.raises(RuntimeError, match="float16 or float32"):
        dense_const_sparse_matmul(popxl.constant(np.zeros((3, 4), "int32")), Csr(sparse), 5)
