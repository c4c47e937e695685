"""Quantised matrices: views and numbers as of any tensor, products against float64."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops
from popxl_torch.backends.torch_backend import TorchBackend
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import quantised
from popxl_torch.kernels.joined import columns_product, reduced_product
from popxl_torch.kernels.linalg import matmul_2d
from popxl_torch.kernels.native import Native
from popxl_torch.kernels.native.quantised import dot, widened
from popxl_torch.kernels.quantised import DOT_ROWS, QuantisedTensor, from_storage
from popxl_torch.settings import Settings

from runtime.tests.popxl_torch.kernels.quantised_cases import (
    FORMATS,
    STORED,
    HostMatrix,
    host_matrix,
    rounded_groups,
)
from runtime.tests.popxl_torch.kernels.test_native import instruction_sets

RTOL = 2e-6  # of the sums of the products' sizes: float32 sums
HALF = 1e-3  # of the largest: codes widened to float16
BRAIN = 2**-8  # of the largest: x and the result rounded to bfloat16
ROUNDED_X = 0.03  # of the result's standard deviation: x in int8, 32 elements at a time

SETS = instruction_sets()
needs_library = pytest.mark.skipif(not SETS, reason="the C++ kernels are not built here")
ROWS = (1, 2, 3, 4, 5, 6, 7, 13)


def tensor(matrix: HostMatrix) -> QuantisedTensor:
    found = from_storage(matrix.popxl_storage, torch.float16)
    assert found is not None
    return found


def rows_of(rng: Generator, m: int, k: int) -> np.ndarray:
    return rng.normal(size=(m, k)).astype(np.float32)


# ---- as tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("format", STORED)
@pytest.mark.parametrize(("cut", "r"), [("", 1), ("columns", 1), ("columns", 4), ("rows", 2)])
def test_it_has_the_numbers_and_the_shape_of_its_array(
    rng: Generator, format: str, cut: str, r: int
) -> None:
    matrix = host_matrix(rng, format, 8, 128, cut, r)
    ours, expected = tensor(matrix), torch.from_numpy(np.asarray(matrix))
    assert ours.shape == expected.shape
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.numbers(), expected, rtol=0, atol=0)
    torch.testing.assert_close(ours + 0, expected, rtol=0, atol=0)


@pytest.mark.parametrize("format", STORED)
def test_views_stay_quantised_and_see_the_right_numbers(rng: Generator, format: str) -> None:
    matrix = host_matrix(rng, format, 8, 128, "columns", 2)
    ours, expected = tensor(matrix), torch.from_numpy(np.asarray(matrix))
    for view in (
        lambda t: t[1],
        lambda t: t[1].t(),
        lambda t: t.permute(0, 2, 1),
        lambda t: t.permute(0, 2, 1).view(8, 128),
        lambda t: t[:, 32:64],
        lambda t: t.unsqueeze(0).expand(3, 2, 128, 4),
        lambda t: t.unsqueeze(0).squeeze(0).detach(),
        lambda t: list(t)[1],
        lambda t: t.split([32, 96], 1)[1],
    ):
        seen = view(ours)
        assert isinstance(seen, QuantisedTensor)
        torch.testing.assert_close(seen.numbers(), view(expected), rtol=0, atol=0)
    assert not isinstance(ours.reshape(-1), QuantisedTensor)
    torch.testing.assert_close(ours.reshape(-1), expected.reshape(-1), rtol=0, atol=0)


def test_bytes_are_those_of_codes_and_scales(rng: Generator) -> None:
    backend = TorchBackend(Settings(device="cpu"), 2)
    for format, size_bytes in (
        ("int8", 64 * 32 + 4 * 32),
        ("int4", 64 * 32 // 2 + 2 * 2 * 32),
        ("bfloat16", 2 * 64 * 32),
    ):
        matrix = tensor(host_matrix(rng, format, 32, 64))
        assert backend.nbytes(matrix) == size_bytes
        assert backend.nbytes(matrix[:16]) == size_bytes // 2
        assert backend.nbytes(matrix.expand(3, 32, 64)) == size_bytes


def test_an_unknown_format_is_an_ordinary_array(rng: Generator) -> None:
    matrix = host_matrix(rng, "int8", 4, 32)
    matrix.format = "fp5"
    backend = TorchBackend(Settings(device="cpu"), 1)
    found = backend.remote_view(matrix, Spec((4, 32), "float16"))  # type: ignore[arg-type]
    assert type(found) is torch.Tensor
    np.testing.assert_array_equal(found.numpy(), np.asarray(matrix))


# ---- products -----------------------------------------------------------------------------------


def expected_product(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ numbers.T


@pytest.fixture(params=SETS, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Native:
    return request.param


@needs_library
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), [(24, 256), (25, 96), (1, 32), (100, 1120)])
def test_int8_dots(rng: Generator, library: Native, m: int, n: int, k: int) -> None:
    matrix, x = host_matrix(rng, "int8", n, k), rows_of(rng, m, k)
    found = dot(library, torch.from_numpy(x), *map(torch.from_numpy, (matrix.codes, matrix.scales)))
    sizes = np.abs(x).astype(np.float64) @ np.abs(matrix.numbers).T
    error = np.abs(found.numpy() - expected_product(x, matrix.numbers))
    assert (error <= RTOL * sizes).all()


@needs_library
def test_int8_takes_any_inner_size(rng: Generator, library: Native) -> None:
    for k in (1, 7, 8, 15, 33):
        matrix, x = host_matrix(rng, "int8", 5, k), rows_of(rng, 3, k)
        weights = map(torch.from_numpy, (matrix.codes, matrix.scales))
        found = dot(library, torch.from_numpy(x), *weights)
        np.testing.assert_allclose(
            found.numpy(), expected_product(x, matrix.numbers), rtol=1e-4, atol=1e-5
        )


@needs_library
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), [(24, 256), (25, 96), (1, 32), (100, 1120)])
def test_int4_dots(rng: Generator, library: Native, m: int, n: int, k: int) -> None:
    """Exact but for the rounding of x, which is that of the description."""
    matrix, x = host_matrix(rng, "int4", n, k), rows_of(rng, m, k)
    x[0, :32] = 0
    found = dot(library, torch.from_numpy(x), *map(torch.from_numpy, (matrix.codes, matrix.scales)))
    rounded = rounded_groups(x)
    # The sum with codes plus 8 and the shift by 8 cancel: sizes of both count.
    sizes = np.abs(rounded) @ (np.abs(matrix.numbers) + 16 * 0.1).T
    error = np.abs(found.numpy() - rounded @ matrix.numbers.T)
    assert (error <= RTOL * sizes).all()


@needs_library
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_the_others(rng: Generator, library: Native, format: str) -> None:
    matrix, x = host_matrix(rng, format, 50, 352), torch.from_numpy(rows_of(rng, 13, 352))
    weights = [torch.from_numpy(array) for array in (matrix.codes, matrix.scales)]
    together = dot(library, x, *weights)
    for i in range(13):
        assert torch.equal(dot(library, x[i : i + 1], *weights)[0], together[i])


@needs_library
@pytest.mark.parametrize("format", FORMATS)
def test_threads_do_not_change_a_bit_of_quantised_products(
    rng: Generator, library: Native, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    matrix, x = host_matrix(rng, format, 611, 1024), torch.from_numpy(rows_of(rng, 2, 1024))
    weights = [torch.from_numpy(array) for array in (matrix.codes, matrix.scales)]
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(dot(library, x, *weights))
    assert all(torch.equal(found, results[0]) for found in results)


@needs_library
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_only(
    rng: Generator, library: Native, format: str, value: float
) -> None:
    matrix, x = host_matrix(rng, format, 50, 352), rows_of(rng, 7, 352)
    weights = [torch.from_numpy(array) for array in (matrix.codes, matrix.scales)]
    expected = dot(library, torch.from_numpy(x), *weights)
    for place in (0, 17, 351):
        bad = x.copy()
        bad[4, place] = value
        found = dot(library, torch.from_numpy(bad), *weights)
        assert not found[4].isfinite().any()
        assert torch.equal(found[[0, 1, 2, 3, 5, 6]], expected[[0, 1, 2, 3, 5, 6]])


@needs_library
@pytest.mark.parametrize("tiny", [1e-45, 1e-38, 1e-36, 1e-31])
def test_int4_takes_activations_too_small_for_a_scale_as_zeros(
    rng: Generator, library: Native, tiny: float
) -> None:
    matrix, x = host_matrix(rng, "int4", 9, 96), torch.zeros(1, 96)
    weights = [torch.from_numpy(array) for array in (matrix.codes, matrix.scales)]
    x[0, 32:64] = tiny
    assert not dot(library, x, *weights).any()


@needs_library
@pytest.mark.parametrize("format", FORMATS)
def test_widened_codes_are_the_numbers_as_float16(
    rng: Generator, library: Native, format: str
) -> None:
    matrix = host_matrix(rng, format, 37, 96)
    memory = torch.full((5000,), torch.nan, dtype=torch.float16)
    found = widened(library, *map(torch.from_numpy, (matrix.codes, matrix.scales)), memory)
    np.testing.assert_array_equal(found.numpy(), np.asarray(matrix))


@pytest.mark.parametrize("with_library", [False, pytest.param(True, marks=needs_library)])
@pytest.mark.parametrize("format", STORED)
@pytest.mark.parametrize("m", [1, 3, 6, 25, 65])
def test_products_of_whole_matrices_and_shards(
    rng: Generator, monkeypatch: pytest.MonkeyPatch, format: str, m: int, with_library: bool
) -> None:
    if not with_library:
        monkeypatch.setattr(quantised, "native", lambda: None)
    monkeypatch.setattr(quantised, "TILE_ROWS", 24)  # several tiles, the last one smaller
    x = torch.from_numpy(rows_of(rng, m, 128))
    for cut in ("columns", "rows"):
        matrix = host_matrix(rng, format, 64, 128, cut, 4)
        ours, expected = tensor(matrix), x.double() @ torch.from_numpy(matrix.numbers).t()
        limit = HALF * expected.abs().max()
        if format == "int4" and with_library and m <= DOT_ROWS[format]:
            limit = ROUNDED_X * expected.std() * 4
        if format == "bfloat16":
            limit = BRAIN * expected.abs().max()
        if cut == "columns":
            joined = ours.as_strided((128, 64), ours.stride()[1:])
            assert joined.rows() is not None
            found = columns_product(x, joined)
            assert torch.equal(columns_product(x, ours), found)
            shard = matmul_2d(x, ours[1])
            assert (shard - expected[:, 16:32]).abs().max() < limit
        else:
            parts = x.view(m, 4, 32).permute(1, 0, 2)
            joined = ours.as_strided((128, 64), ours.stride()[1:])
            assert joined.rows() is not None
            found = reduced_product(parts, joined)
            assert (reduced_product(parts, ours) - found).abs().max() < limit
        assert (found - expected).abs().max() < limit


def test_a_view_of_no_rows_is_multiplied_by_its_numbers(rng: Generator) -> None:
    matrix = host_matrix(rng, "int4", 64, 128)
    ours, x = tensor(matrix), torch.from_numpy(rows_of(rng, 3, 64))
    expected = x.double() @ torch.from_numpy(matrix.numbers)
    assert (matmul_2d(x, ours) - expected).abs().max() < HALF * expected.abs().max()
    part = ours[:, 16:48].t()  # half of two groups
    assert part.rows() is None
    expected = x[:, :32].double() @ torch.from_numpy(matrix.numbers[:, 16:48]).t()
    assert (matmul_2d(x[:, :32], part) - expected).abs().max() < HALF * expected.abs().max()


# ---- in programs --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", STORED)
@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_program_computes_with_a_quantised_variable(
    rng: Generator, format: str, remote: bool, replicas: int
) -> None:
    """A product, and an op that knows nothing of it; reading gives the numbers back."""
    ir = popxl.Ir(replication=replicas)
    matrix = host_matrix(rng, format, 8, 64, "columns", replicas)
    with ir.main_graph:
        grouping = ir.replica_grouping(group_size=1)
        stream = popxl.h2d_stream((3, 64), popxl.float16)
        zeros = np.zeros(matrix.shape, np.float16)
        if remote:
            buffer = popxl.remote_buffer((64, 8 // replicas), popxl.float16, 1)
            w = popxl.remote_variable(zeros, buffer, 0, replica_grouping=grouping)
            loaded = ops.remote_load(buffer, 0)
        else:
            w = loaded = popxl.variable(zeros, replica_grouping=grouping)
        results = (ops.host_load(stream) @ loaded, loaded + loaded)
        outputs = [popxl.d2h_stream(t.shape, t.dtype) for t in results]
        for out, value in zip(outputs, results, strict=True):
            ops.host_store(out, value)
    x = rng.normal(size=(3, 64)).astype(np.float16)
    with popxl.Session(ir, "ipu_model") as session:
        session.write_variable_data(w, matrix)  # type: ignore[arg-type]
        product, doubled = (
            session.run({stream: np.stack([x] * replicas) if replicas > 1 else x})[out]
            for out in outputs
        )
        np.testing.assert_array_equal(session.get_tensor_data(w), np.asarray(matrix))
    shards = matrix.numbers.reshape(replicas, 8 // replicas, 64).transpose(0, 2, 1)
    expected = x.astype(np.float64) @ shards
    limit = 4 * ROUNDED_X * expected.std()
    assert np.abs(product.reshape(expected.shape) - expected).max() < limit
    np.testing.assert_array_equal(doubled, 2 * np.asarray(matrix))


def test_a_quantised_array_must_fit_its_variable(rng: Generator) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        w = popxl.variable(np.zeros((4, 32), np.float16))
        _ = w + w
    with popxl.Session(ir, "ipu_model") as session:
        with pytest.raises(ValueError, match="shape"):
            session.write_variable_data(w, host_matrix(rng, "int8", 5, 32))  # type: ignore[arg-type]
        wrong = host_matrix(rng, "int8", 4, 32)
        wrong.dtype = np.dtype(np.float32)
        with pytest.raises(TypeError, match="dtype"):
            session.write_variable_data(w, wrong)  # type: ignore[arg-type]
