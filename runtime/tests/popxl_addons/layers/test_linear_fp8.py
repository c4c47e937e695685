"""LinearFP8 against float8 arithmetic by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl.fp8_utils import host_pow2scale_cast_from_fp8, host_pow2scale_cast_to_fp8
from popxl_addons.layers.linear_fp8 import LinearFP8

FLOAT16 = {"rtol": 2e-3, "atol": 2e-3}
LARGEST = {popxl.float8_143: 240.0, popxl.float8_152: 57344.0}


def rounded(x: np.ndarray, dtype: popxl.dtype, scale: int) -> np.ndarray:
    """What x is after a cast to float8 with a scale and back, float64."""
    codes = host_pow2scale_cast_to_fp8(x, dtype, scale)
    return host_pow2scale_cast_from_fp8(codes, popxl.float64, -scale)


def amax_scale(x: np.ndarray, dtype: popxl.dtype) -> int:
    return int(np.clip(np.floor(np.log2(LARGEST[dtype] / np.abs(x).max())), -31, 31))


def run(layer: addons.Module, x: np.ndarray, dy: np.ndarray) -> tuple[list[np.ndarray], Any]:
    """(y, dx, dweight[, dbias]) and the weight."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        factories, graph = layer.create_graph(popxl.variable(x).spec)
        grad = graph.autodiff()
        variables = factories.init()
        info = graph.bind(variables).call_with_info(popxl.variable(x))
        grads = grad.call(popxl.variable(dy), args=grad.grad_graph_info.inputs_dict(info))
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in (info.outputs[0], *grads)]
        for stream, t in zip(streams, (info.outputs[0], *grads), strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run()
    return [results[s] for s in streams], session.get_tensor_data(variables.weight)


@pytest.mark.parametrize("metric", ["amax", "manual_scale"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 8), np.float32), ((5, 8), np.float16), ((2, 3, 8), np.float16)]
)
def test_values_and_gradients(
    metric: str, bias: bool, shape: tuple, dtype: Any, rng: np.random.Generator
):
    x, dy = (rng.normal(size=s).astype(dtype) for s in (shape, (*shape[:-1], 6)))
    layer = LinearFP8(6, bias=bias, scale_metric=metric, scale=4)
    found, weight = run(layer, x, dy)

    def scale(t: np.ndarray, fp8: popxl.dtype) -> int:
        return 4 if metric == "manual_scale" else amax_scale(t, fp8)

    w8 = rounded(weight, popxl.float8_143, scale(weight, popxl.float8_143))
    x8 = rounded(x, popxl.float8_143, scale(x, popxl.float8_143)).reshape(-1, 8)
    dy8 = rounded(dy, popxl.float8_152, scale(dy, popxl.float8_152) - 3).reshape(-1, 6)
    wanted = [(x8 @ w8).reshape(dy.shape), (dy8 @ w8.T).reshape(x.shape), x8.T @ dy8]
    wanted += [dy.astype(np.float64).reshape(-1, 6).sum(0)] * bias
    for value, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(value, expected, **FLOAT16)
    assert [value.dtype for value in found[:3]] == [dtype, np.float16, np.float16]


def test_scales_of_least_squared_error_are_close_to_the_exact_product(rng: np.random.Generator):
    x, dy = rng.normal(size=(16, 32)).astype("f4"), rng.normal(size=(16, 8)).astype("f4")
    (y, dx, dw, _), weight = run(LinearFP8(8, scale_metric="mse"), x, dy)
    for value, exact in ((y, x @ weight), (dx, dy @ weight.T), (dw, x.T @ dy)):
        assert np.linalg.norm(value - exact) < 0.1 * np.linalg.norm(exact)


def test_the_scale_of_a_gradient_is_clipped():
    """A gradient of 1e14 would want a scale of -34, which no cast takes."""
    x, dy = np.full((2, 4), 1e-3, np.float32), np.full((2, 3), 1e14, np.float32)
    (_, _, dw, db), _ = run(LinearFP8(3), x, dy)
    np.testing.assert_allclose(db, [2e14] * 3, rtol=1e-5)
    assert np.isposinf(dw).all()  # 2e11 in float16


def test_it_is_not_called_inline(ir: popxl.Ir):
    class Outer(addons.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = LinearFP8(4)

        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            return self.inner(x)

    with pytest.raises(Exception, match="`build_grad` has been implemented"):
        Outer().create_graph(popxl.TensorSpec((2, 4), popxl.float16))


def test_other_metrics():
    with pytest.raises(ValueError, match="no_scale"):
        LinearFP8(4, scale_metric="no_scale")
