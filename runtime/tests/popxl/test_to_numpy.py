"""popxl.utils.to_numpy, and constants made by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import popxl
import pytest
import torch
from popxl import ops
from popxl.dtypes import np_dtype_float8_143
from popxl.fp8_utils import host_pow2scale_cast_to_fp8
from popxl.utils import downcast_np_dtypes, to_numpy

from runtime.tests.popxl.programs import run


def mapped(path: Path, dtype: str, shape: tuple[int, ...] = (2, 3), mode: Any = "w+") -> np.memmap:
    return np.memmap(path / "map", dtype, mode, shape=shape)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (5, "int32"),
        (5.0, "float32"),
        (True, "bool"),
        ([[1, 2], [3, 4]], "int32"),
        ([1, 2.5], "float32"),
        (np.float64(5), "float32"),
        (np.uint64(5), "uint32"),
        (np.int16(5), "int16"),
        (np.zeros(2, "float16"), "float16"),
        (torch.zeros(2, dtype=torch.int64), "int32"),
        (torch.zeros(2, requires_grad=True), "float32"),
    ],
    ids=str,
)
def test_inferred_dtypes(value: Any, wanted: str):
    found = to_numpy(value)
    assert found.dtype == wanted
    plain = value.tolist() if isinstance(value, torch.Tensor) else value
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
def test_without_downcast(dtype: str):
    assert to_numpy(np.zeros(2, dtype), downcast=False).dtype == dtype
    assert to_numpy(np.zeros(2, dtype)).dtype == downcast_np_dtypes[np.dtype(dtype)]


def test_an_explicit_dtype_is_exact():
    assert to_numpy(5, popxl.float64).dtype == np.float64
    assert to_numpy(5, popxl.int64).dtype == np.int64
    np.testing.assert_array_equal(to_numpy([1.9, -1.9], popxl.int32), [1, -1])
    np.testing.assert_array_equal(to_numpy([0, 2], popxl.bool), [False, True])


def test_results_are_contiguous():
    source = np.arange(6, dtype="float32").reshape(2, 3).T
    for copy in (True, False):
        found = to_numpy(source, copy=copy)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, source)


def test_copies():
    source = np.zeros(3, "float32")
    assert not np.shares_memory(to_numpy(source), source)
    assert to_numpy(source, copy=False) is source


class TestMemmap:
    def test_is_used_as_it_is(self, tmp_path: Path):
        source = mapped(tmp_path, "float32")
        assert to_numpy(source, copy=False) is source
        assert not np.shares_memory(to_numpy(source), source)

    def test_another_dtype(self, tmp_path: Path):
        with pytest.raises(ValueError, match="dtype"):
            to_numpy(mapped(tmp_path, "float32"), popxl.float16)

    def test_strides(self, tmp_path: Path):
        with pytest.raises(ValueError, match="contiguous"):
            to_numpy(mapped(tmp_path, "float32").T)

    @pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
    @pytest.mark.parametrize("downcast", [True, False])
    def test_64_bits(self, tmp_path: Path, dtype: str, downcast: bool):
        with pytest.raises(ValueError, match="downcast"):
            to_numpy(mapped(tmp_path, dtype), downcast=downcast)

    def test_as_input(self, tmp_path: Path, ir: popxl.Ir):
        with ir.main_graph:
            xs = popxl.h2d_stream((2, 3), popxl.float32)
            ys = popxl.d2h_stream((2, 3), popxl.float32)
            ops.host_store(ys, ops.host_load(xs) + 1.0)
        source = mapped(tmp_path, "float32")
        source[...] = 4
        with popxl.Session(ir) as session:
            np.testing.assert_array_equal(session.run({xs: source})[ys], np.full((2, 3), 5.0))
            with pytest.raises(ValueError, match="downcast"):
                session.run({xs: mapped(tmp_path, "float64", (1, 3))})


class TestFloat8:
    def test_conversion(self, rng: np.random.Generator):
        source = rng.normal(size=5).astype("float32")
        found = to_numpy(source, popxl.float8_143, log2_scale=2)
        np.testing.assert_array_equal(
            found, host_pow2scale_cast_to_fp8(source, popxl.float8_143, 2, True)
        )

    def test_overflow(self):
        source = np.array([1e4, 1.0], "float32")
        codes = [
            to_numpy(source, popxl.float8_143, nan_on_overflow=flag)["float8_143"]
            for flag in (None, True, False)
        ]
        assert codes[0][0] == codes[1][0] == 0x80
        assert codes[2][0] != 0x80

    def test_structured_arrays_are_taken_as_they_are(self):
        source = np.zeros(3, np_dtype_float8_143)
        found = to_numpy(source, popxl.float8_143)
        assert found.dtype == np_dtype_float8_143
        assert not np.shares_memory(found, source)
        assert to_numpy(source, popxl.float8_143, copy=False) is source

    @pytest.mark.parametrize("dtype", ["int32", "uint8"])
    def test_other_sources(self, dtype: str):
        with pytest.raises(TypeError, match="is not supported for float8 tensors"):
            to_numpy(np.zeros(2, dtype), popxl.float8_143)

    @pytest.mark.parametrize("options", [{"log2_scale": 0}, {"nan_on_overflow": True}])
    @pytest.mark.parametrize("dtype", [None, popxl.float16])
    def test_options_for_other_dtypes(self, options: Any, dtype: Any):
        with pytest.raises(RuntimeError, match="float8"):
            to_numpy(1.0, dtype, **options)

    def test_a_structured_array_needs_its_dtype(self, main: popxl.Graph):
        source = np.zeros(3, np_dtype_float8_143)
        for make in (popxl.constant, popxl.variable):
            with pytest.raises(TypeError):
                make(source)
            assert make(source, popxl.float8_143).dtype is popxl.float8_143
        with pytest.raises(TypeError):
            popxl.variable([1.0]) ** source


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ((5,), popxl.int32),
        ((5.0,), popxl.float32),
        ((np.float64(5),), popxl.float32),
        ((5, popxl.float64), popxl.float64),
        ((True,), popxl.bool),
    ],
)
def test_constants(main: popxl.Graph, args: Any, wanted: popxl.dtype):
    constant = popxl.constant(*args)
    assert constant.dtype is wanted
    assert constant in main.constants


def test_constants_are_made_anywhere_and_read(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    source = np.array([1.0, 2.0], "float32")
    constant = popxl.constant(source, name="c")
    inner = ir.create_graph(lambda: popxl.constant([3, 4]) + 0)
    source[:] = 9
    found = run(make_session, ir, constant, *ops.call(inner))
    np.testing.assert_array_equal(found[0], [1.0, 2.0])
    np.testing.assert_array_equal(found[1], [3, 4])
    np.testing.assert_array_equal(make_session(ir).get_tensor_data(constant), [1.0, 2.0])


def test_constant_without_downcast(main: popxl.Graph):
    assert popxl.constant(np.zeros(2), downcast=False).dtype is popxl.float64


def test_an_empty_operand(main: popxl.Graph):
    x, empty = popxl.variable([1.0]), np.zeros(0)
    with pytest.raises(ValueError, match="The value has 0 elements"):
        x * empty
