"""What kernels prepare with known inputs gives the bits that they give without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import Site, kernel_entry

R, M, K, N = 4, 3, 8, 6
"""Replicas, rows, columns of the matrix's shards."""


def _site(kind: str, ins: list[tuple], varying: list[bool], out: tuple, **attrs: object) -> Site:
    specs = [Spec(shape, dtype) for shape, dtype in ins]
    return Site(kind, attrs, specs, [Spec(out, "float32")], R, varying_ins=tuple(varying))


def _linear(product: str, dtype: str) -> tuple[Site, list[torch.Tensor]]:
    """x, w, a bias and a residual; the bias of joined columns is joined too."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    columns, reduced = product == "MatMulColumns", product == "MatMulReduced"
    x = random(R, M, K) if reduced else random(M, K)
    w = random(R * K if reduced else K, R * N if columns else N).to(getattr(torch, dtype))
    bias = random(R * N if columns else N)
    rest = random(R, M, N) if columns else random(M, N)
    ins = [((M, K), dtype), (tuple(w.shape), dtype), (tuple(bias.shape), dtype)]
    ins.append(((M, N), dtype))
    attrs = {"product": product, "activation": "Gelu"}
    site = _site("Linear", ins, [reduced, False, False, columns], (M, N), **attrs)
    return site, [x, w, bias, rest]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("product", ["MatMul", "MatMulColumns", "MatMulReduced"])
def test_a_linear_step_with_known_weights(product: str, dtype: str) -> None:
    site, (x, w, bias, rest) = _linear(product, dtype)
    entry = kernel_entry("Linear")
    assert entry.prepare is not None
    prepared = entry.prepare(site, (None, w, bias, None))
    assert prepared is not None
    with torch.inference_mode():
        wanted = entry.factory(site, 0)(x, w, bias, rest)
        for _ in range(2):  # nothing known is changed
            assert torch.equal(prepared(x, rest), wanted)
        w *= 2
        bias += 1
        wanted = entry.factory(site, 0)(x, w, bias, rest)
        assert torch.equal(prepared(x, rest), wanted)


def test_a_linear_step_whose_known_addend_is_not_the_first_is_left_alone() -> None:
    site, (_, w, _, rest) = _linear("MatMul", "float32")
    entry = kernel_entry("Linear")
    assert entry.prepare is not None
    assert entry.prepare(site, (None, w, None, rest)) is None


@pytest.mark.parametrize("kind", ["MatMulColumns", "MatMulReduced"])
def test_a_product_of_joined_shards_that_are_known(kind: str) -> None:
    _, (x, w, _, _) = _linear(kind, "float32")
    site = _site(kind, [((M, K), "float32")] * 2, [kind == "MatMulReduced", False], (M, N))
    entry = kernel_entry(kind)
    assert entry.prepare is not None
    prepared = entry.prepare(site, (None, w))
    assert prepared is not None
    assert torch.equal(prepared(x), entry.factory(site, 0)(x, w))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("outer", [(M,), (2, M)])
def test_a_product_with_a_matrix_that_is_known(outer: tuple[int, ...], dtype: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*outer, K, generator=generator)
    w = torch.randn(K, N, generator=generator).to(getattr(torch, dtype))
    ins = [((*outer, K), dtype), ((K, N), dtype)]
    entry = kernel_entry("MatMul")
    assert entry.prepare is not None
    site = _site("MatMul", ins, [False, False], (*outer, N))
    prepared = entry.prepare(site, (None, w))
    assert prepared is not None
    assert torch.equal(prepared(x), entry.factory(site, 0)(x, w))
    assert entry.prepare(site, (x, None)) is None
    apart = _site("MatMul", ins, [True, False], (*outer, N))
    assert entry.prepare(apart, (None, w)) is None


def test_a_product_of_float8_and_its_scale_is_left_alone() -> None:
    entry = kernel_entry("MatMul")
    assert entry.prepare is not None
    ins = [((M, K), "float8_143"), ((K, N), "float8_143"), ((), "int32")]
    site = _site("MatMul", ins, [False] * 3, (M, N))
    assert entry.prepare(site, (None, torch.zeros(K, N, dtype=torch.uint8), None)) is None


@pytest.mark.parametrize("zero_oor", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_of_a_known_table(shape: tuple[int, ...], axis: int, zero_oor: bool) -> None:
    table = torch.arange(20.0).view(4, 5)
    out = (*table.shape[:axis], *shape, *table.shape[axis + 1 :])
    ins = [((4, 5), "float32"), (shape, "int32")]
    attrs = {"axis": axis, "zero_oor": zero_oor, "group_size": 1}
    site = _site("Gather", ins, [False, False], out, **attrs)
    entry = kernel_entry("Gather")
    assert entry.prepare is not None
    prepared = entry.prepare(site, (table, None))
    assert prepared is not None
    for number in (-1, 0, 3, table.shape[axis]):
        index = torch.tensor(np.full(shape, number, np.int32))
        found, wanted = prepared(index), entry.factory(site, 0)(table, index)
        assert found.shape == wanted.shape
        assert torch.equal(found, wanted)
