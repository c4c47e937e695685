"""Streams of one tensor, formats, helpers, and what is not implemented."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl_addons.ops import fp8_utils
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.cross_entropy_sharded_wr_loss import cross_entropy_sharded_wr_loss
from popxl_addons.ops.cross_entropy_sharded_wr_loss.cross_entropy_sharded_wr_loss import handle_ipus
from popxl_addons.ops.fp8_mse_scale import fp8_mse_scale
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


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (addons.fp8_amax_scale, 1),
        (fp8_mse_scale, 1),
        (grad_reduce_square_add, 2),
        (layer_norm_distributed, 3),
        (cross_entropy_sharded_loss, 2),
        (cross_entropy_sharded_wr_loss, 2),
        (dense_const_sparse_matmul, 3),
    ],
)
def test_ops_to_come_name_themselves(function: Any, count: int):
    with pytest.raises(NotImplementedError, match=function.__name__):
        function(*[None] * count)
