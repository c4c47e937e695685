"""Products with half-precision weights in C++: values, layouts, threads, and the switch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from popxl_torch.kernels import linalg
from popxl_torch.kernels import native as package
from popxl_torch.kernels.linalg import DOT_ROWS, NATIVE_FROM, matmul_2d
from popxl_torch.kernels.native import STORED, Native, library_path

# Of the sum of the products' sizes: float32 rounds each of a lane's additions, and a lane adds an
# eighth of the products at most.
RTOL_OF_SIZES = 2e-6
KERNELS = ("dot", "tiles")
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 168)


def instruction_sets() -> list[Native]:
    """All that the library and this processor have in common; empty if it is not built."""
    path = library_path()
    functions = path and package._load(path)
    if not functions:
        return []
    sets = package._sets(functions)
    return [Native(name, index, functions, package._fork()) for name, index in sets.items()]


SETS = instruction_sets()
needs_library = pytest.mark.skipif(not SETS, reason="the C++ kernels are not built here")


@pytest.fixture(params=SETS, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Native:
    return request.param


def product(library: Native, kernel: str, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    if kernel == "dot":
        return library.dot(x, w)
    # Not zeros: what the kernel does not write itself would show.
    return library.tiles(x, w, torch.full((library.scratch_size(x, w),), torch.nan))


def matrix(rng: Generator, rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32))


def assert_product(found: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> None:
    wide = w.double()
    assert found.dtype == torch.float32
    error = (found - x.double() @ wide.t()).abs()
    bound = RTOL_OF_SIZES * (x.double().abs() @ wide.abs().t())
    assert bool((error <= bound).all()), f"{float((error - bound).max())} beyond the bound"


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_values(rng: Generator, library: Native, kernel: str, dtype: torch.dtype, rows: int):
    for n, k in rng.integers(1, 700, (4, 2)):
        x, w = matrix(rng, rows, k), matrix(rng, n, k).to(dtype)
        assert_product(product(library, kernel, x, w), x, w)


@needs_library
@given(
    rows=st.integers(1, 30),
    n=st.integers(1, 70),
    k=st.one_of(st.integers(0, 40), st.sampled_from((255, 256, 257, 1023, 1024, 1025, 2049))),
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    seed=st.integers(0, 2**32),
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_any_distance(
    kernel: str, rows: int, n: int, k: int, before: int, after: int, seed: int
):
    """Columns of a wider matrix, and what lies beside them must not matter."""
    rng = np.random.default_rng(seed)
    columns = slice(before, before + k)
    whole_x = matrix(rng, rows, before + k + after)
    whole_w = matrix(rng, n, before + k + after).to(STORED[seed % 2])
    x, w = whole_x[:, columns].clone(), whole_w[:, columns].clone()
    whole_x[:, :before] = whole_x[:, before + k :] = torch.nan
    whole_w[:, :before] = whole_w[:, before + k :] = torch.inf
    if k == 0 and kernel == "tiles":
        return  # such a matrix is never big enough for tiles
    for library in SETS:
        found = product(library, kernel, whole_x[:, columns], whole_w[:, columns])
        assert_product(found, x, w)


@needs_library
def test_more_rows_than_the_scratch_memory_holds_at_once(rng: Generator, library: Native):
    x, w = matrix(rng, 1700, 40), matrix(rng, 50, 40).half()
    assert_product(product(library, "tiles", x, w), x, w)
    assert library.scratch_size(x, w) == library.scratch_size(x[:768], w)


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("place", [0, 5, 20, 34])
def test_nan_and_infinity_stay_in_their_row_and_column(
    rng: Generator, library: Native, kernel: str, dtype: torch.dtype, place: int
):
    x, w = matrix(rng, 9, 35), matrix(rng, 37, 35).to(dtype)
    x[3, place] = torch.inf
    w[7, place], w[36, place] = torch.nan, -torch.inf
    expected = x.double() @ w.double().t()
    found = product(library, kernel, x, w)
    assert torch.equal(found.isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(found[infinite].double(), expected[infinite])
    assert int(infinite.sum() + expected.isnan().sum()) == 9 + 9 + 37 - 2


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
def test_subnormal_weights_count(library: Native, kernel: str):
    w = torch.full((17, 33), 2.0**-24, dtype=torch.float16)  # float16's least
    found = product(library, kernel, torch.ones(5, 33), w)
    assert torch.equal(found, torch.full((5, 17), 33 * 2.0**-24))


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_half_value_is_widened_as_torch_does(library: Native, kernel: str):
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in STORED:
        w = codes.view(dtype)
        # Each value alone in its row: its product with 1 is itself.
        found = product(library, kernel, torch.ones(1, 1), w.reshape(-1, 1))[0]
        torch.testing.assert_close(found, w.float(), rtol=0, atol=0, equal_nan=True)


@needs_library
def test_a_row_is_the_same_in_any_company(rng: Generator, library: Native):
    x, w = matrix(rng, DOT_ROWS, 2100), matrix(rng, 45, 2100).half()
    alone = torch.cat([library.dot(row[None], w) for row in x])
    for rows in range(2, DOT_ROWS + 1):
        assert torch.equal(library.dot(x[:rows], w), alone[:rows])


@needs_library
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("own_threads", [False, True], ids=["OpenMP", "own threads"])
def test_threads_do_not_change_a_bit(
    rng: Generator,
    library: Native,
    kernel: str,
    own_threads: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(package, "SERIAL_BELOW", 0)
    if own_threads:
        library = Native(library.name, library.index, library.functions, None)
    x, w = matrix(rng, 20, 300), matrix(rng, 500, 300).half()
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(product(library, kernel, x, w))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_library
def test_torch_s_own_openmp_is_found():
    assert ("OpenMP" in torch.__config__.parallel_info()) == (SETS[0].fork is not None)


# ---- the table of linalg ---------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the library's kernels as matmul_2d calls them."""
    made: list[str] = []
    for name in KERNELS:
        whole = getattr(Native, name)

        def spied(*arguments: object, name: str = name, whole=whole) -> torch.Tensor:
            made.append(name)
            return whole(*arguments)

        monkeypatch.setattr(Native, name, spied)
    monkeypatch.setattr(linalg, "native", lambda: SETS[0])
    # Which rule is taken must not depend on the processor.
    monkeypatch.setattr(linalg, "_multiplies_brain", lambda: False)
    return made


@needs_library
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(
    ("rows", "kernel"), [(1, "dot"), (6, "dot"), (DOT_ROWS, "dot"), (DOT_ROWS + 1, "tiles")]
)
@pytest.mark.parametrize("left", [torch.float32, torch.float16])
def test_weights_stored_by_output_are_read_in_place(
    rng: Generator,
    calls: list[str],
    dtype: torch.dtype,
    rows: int,
    kernel: str,
    left: torch.dtype,
):
    x, w = matrix(rng, rows, 130).to(left), matrix(rng, 2 * 128, 130).to(dtype)
    shard = w[::2]
    found = matmul_2d(x, shard.t())
    assert calls == [kernel]
    assert_product(found, x.float(), shard)


@needs_library
@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("stored by input", lambda x, w: (x, w.contiguous())),
        ("small", lambda x, w: (x, w[:, :10])),
        ("float32", lambda x, w: (x, w.float())),
        ("every second column", lambda x, w: (x[:, ::2], w[::2])),
        ("float64 beside it", lambda x, w: (x.double(), w.double())),
    ],
)
def test_other_weights_are_left_to_torch(rng: Generator, calls: list[str], why: str, change):
    x, w = change(matrix(rng, 3, 130), matrix(rng, 300, 130).half().t())
    found = matmul_2d(x, w)
    assert calls == []
    assert_product(found.float(), x.float(), w.t())


@needs_library
def test_activations_of_any_stride(rng: Generator, calls: list[str]):
    w = matrix(rng, 200, 130).half()
    assert w.numel() >= NATIVE_FROM
    layouts = (
        matrix(rng, 130, 4).t(),
        matrix(rng, 4, 260)[:, ::2],
        matrix(rng, 1, 130).expand(4, 130),
        matrix(rng, 0, 130),
    )
    for x in layouts:
        assert_product(matmul_2d(x, w.t()), x, w)
    assert calls == ["dot"] * len(layouts)


# ---- switch and files ------------------------------------------------------------------------

PROBE = """
import torch
from popxl_torch.kernels.linalg import matmul_2d
from popxl_torch.kernels.native import native
x, w = torch.ones(3, 128), torch.ones(256, 128).half()
assert bool((matmul_2d(x, w.t()) == 128).all())
print(native() and native().name)
"""


def test_switched_off_torch_does_the_work():
    environment = {**os.environ, package.SWITCH: "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """native() without what it remembers."""
    monkeypatch.delenv(package.SWITCH, raising=False)
    return package.native.__wrapped__


@needs_library
@pytest.mark.parametrize(
    ("setting", "place"), [("", 0), ("1", 0), ("ON", 0), ("first", 0), ("last", -1)]
)
def test_the_best_set_is_used_or_the_named_one(
    fresh, setting: str, place: int, monkeypatch: pytest.MonkeyPatch
):
    named = {"first": SETS[0].name, "last": SETS[-1].name}
    monkeypatch.setenv(package.SWITCH, named.get(setting, setting))
    found = fresh()
    assert found is not None
    assert (found.name, found.index) == (SETS[place].name, SETS[place].index)


@pytest.mark.parametrize("setting", ["0", "off", "False"])
def test_it_can_be_switched_off(fresh, setting: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(package.SWITCH, setting)
    assert fresh() is None


@needs_library
def test_an_unknown_set_is_an_error_with_the_choices(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(package.SWITCH, "mmx")
    with pytest.raises(ValueError, match=f"POPXL_TORCH_NATIVE is 'mmx'.*{SETS[0].name}"):
        fresh()


def test_without_a_library_there_is_none(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "library_path", lambda: None)
    assert fresh() is None


def test_a_file_for_another_machine_is_no_library(
    fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "_gemm.so"
    path.write_bytes(b"not for here")
    monkeypatch.setattr(package, "library_path", lambda: path)
    assert fresh() is None


@needs_library
def test_a_library_of_another_version_is_left_alone(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "VERSION", package.VERSION + 1)
    assert fresh() is None


@needs_library
def test_a_processor_without_any_set_uses_none(fresh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "_sets", lambda functions: {})
    assert fresh() is None
