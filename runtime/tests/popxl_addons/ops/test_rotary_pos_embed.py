"""Rotary embedding: tables, rotation, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from popxl import ops
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_table_constants, trig_tables
from popxl_torch.ir.records import Spec
from popxl_torch.kernels.registry import Site, kernel_entry

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
# One rounding of the result to float16, of numbers up to about 8.
FLOAT16 = {"rtol": 1e-3, "atol": 1e-3}


def rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Pairs as complex numbers, turned by angles of (seq, rotary_dim / 2) or with batch axis."""
    n = 2 * angles.shape[-1]
    z = x[..., 0:n:2] + 1j * x[..., 1:n:2]
    z = z * np.exp(1j * np.expand_dims(angles, -2))
    out = x.astype(np.float64).copy()
    out[..., 0:n:2], out[..., 1:n:2] = z.real, z.imag
    return out


def test_tables():
    sin, cos = trig_tables(7, 6, base=100)
    angles = np.arange(7)[:, None] * 100.0 ** (-np.array([0, 2, 4]) / 6)
    assert sin.dtype == cos.dtype == np.float32
    np.testing.assert_allclose(sin, np.sin(angles), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cos, np.cos(angles), rtol=1e-5, atol=1e-6)


def test_tables_round_angles_to_their_own_precision():
    sin, _ = trig_tables(2000, 64, np_dtype="float16")
    assert sin.dtype == np.float16
    exact, _ = trig_tables(2000, 64, np_dtype="float64")
    assert np.abs(sin - exact).max() > 0.1


@pytest.mark.parametrize("rotary_dim", [None, 0, 4, 8])
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16])
def test_rotation(rotary_dim: int | None, dtype: Any, ir: popxl.Ir, run: Any, rng: Any):
    x = rng.normal(size=(2, 5, 3, 8)).astype(dtype.as_numpy())
    n = rotary_dim or 8
    stream = popxl.h2d_stream(x.shape, dtype)
    y = rotary_pos_embed(
        ops.host_load(stream), *trig_table_constants(5, n, dtype=dtype), rotary_dim
    )
    assert (y.shape, y.dtype) == (x.shape, dtype)
    (result,) = run([y], {stream: x})
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(0, n, 2) / n)
    tolerance = FLOAT32 if dtype == popxl.float32 else FLOAT16
    np.testing.assert_allclose(result, rotated(x, angles), **tolerance)
    np.testing.assert_array_equal(result[..., n:], x[..., n:])


@pytest.mark.parametrize("batch", [1, 2])
def test_tables_with_a_batch_axis(batch: int, ir: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.normal(size=(2, 5, 3, 8)).astype("float32")
    angles = rng.normal(size=(batch, 5, 4))
    tables = [popxl.constant(f(angles).astype("float32")) for f in (np.sin, np.cos)]
    (result,) = run([rotary_pos_embed(popxl.variable(x), *tables)])
    np.testing.assert_allclose(result, rotated(x, angles), **FLOAT32)


def test_replicas(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.normal(size=(4, 2, 5, 3, 8)).astype("float32")
    stream = popxl.h2d_stream(x.shape[1:], popxl.float32)
    (result,) = run(
        [rotary_pos_embed(ops.host_load(stream), *trig_table_constants(5, 4), 4)], {stream: x}
    )
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(0, 4, 2) / 4)
    for replica in range(4):
        np.testing.assert_allclose(result[replica], rotated(x[replica], angles), **FLOAT32)


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("table_batch", [(), (1,), (2,)])
def test_kernel(lead: int, table_batch: tuple, rng: np.random.Generator):
    shapes = [(2, 5, 3, 8), (*table_batch, 5, 2), (*table_batch, 5, 2)]
    site = Site(
        "RotaryPosEmbed", {"rotary_dim": 4, "halves": False}, [Spec(s, "float32") for s in shapes],
        [Spec(shapes[0], "float32")], 2,
    )  # fmt: skip
    axes = (2,) * lead
    x = rng.normal(size=(*axes, *shapes[0]))
    angles = rng.normal(size=(*axes, *shapes[1]))
    tensors = [torch.tensor(a) for a in (x, np.sin(angles), np.cos(angles))]
    result = kernel_entry("RotaryPosEmbed").factory(site, lead)(*tensors).numpy()
    for i in range(2) if lead else [...]:
        np.testing.assert_allclose(result[i], rotated(x[i], angles[i]), **FLOAT32)
    np.testing.assert_array_equal(tensors[0].numpy(), x)


@pytest.mark.parametrize(
    ("x", "table", "rotary_dim", "message"),
    [
        ((5, 3, 8), (5, 4), 8, "batch, seq, heads, head_dim"),
        ((2, 5, 3, 8), (5, 4), 5, "even"),
        ((2, 5, 3, 8), (5, 5), 10, "at most head_dim 8"),
        ((2, 5, 3, 8), (4, 4), 8, r"sin has shape \(4, 4\)"),
        ((2, 5, 3, 8), (3, 5, 4), 8, r"sin has shape \(3, 5, 4\)"),
    ],
)
def test_errors(x: tuple, table: tuple, rotary_dim: int, message: str, ir: popxl.Ir):
    t = popxl.variable(np.zeros(x, "float32"))
    tables = [popxl.constant(np.zeros(table, "float32")) for _ in range(2)]
    with pytest.raises(popart.popart_exception, match=message):
        rotary_pos_embed(t, *tables, rotary_dim)


def test_tables_need_the_dtype(ir: popxl.Ir):
    t = popxl.variable(np.zeros((1, 5, 3, 8), "float16"))
    with pytest.raises(popart.popart_exception, match="sin has dtype float32, t float16"):
        rotary_pos_embed(t, *trig_table_constants(5, 8))
    with pytest.raises(TypeError, match="is not a Tensor"):
        rotary_pos_embed(np.zeros((1, 5, 3, 8)), t, t)  # type: ignore[arg-type]
