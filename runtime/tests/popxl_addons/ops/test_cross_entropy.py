"""Cross entropy against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
import torch
from popxl_addons import cross_entropy, cross_entropy_with_grad

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss(ignore: int | None, reduction: Any, ir: popxl.Ir, run: Any, rng: Any):
    x = rng.normal(size=(6, 5)).astype("float32")
    labels = np.array([0, 2, 4, 2, 1, 3], "int32")
    loss = cross_entropy(popxl.variable(x), popxl.variable(labels), ignore, reduction)
    (result,) = run([loss])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(x, dtype=torch.float64),
        torch.tensor(labels, dtype=torch.int64),
        ignore_index=-100 if ignore is None else ignore,
        reduction=reduction,
    )
    np.testing.assert_allclose(result, expected.numpy(), **FLOAT32)


def test_gradient_is_scaled_and_the_loss_is_not(ir: popxl.Ir, run: Any, rng: np.random.Generator):
    x = rng.normal(size=(6, 5)).astype("float32")
    labels = np.array([0, 2, 4, 2, 1, 3], "int32")
    loss, dx = run(
        list(cross_entropy_with_grad(popxl.variable(x), popxl.variable(labels), loss_scaling=8))
    )
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(t, torch.tensor(labels, dtype=torch.int64))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), **FLOAT32)
    np.testing.assert_allclose(dx, 8 * t.grad.numpy(), **FLOAT32)
