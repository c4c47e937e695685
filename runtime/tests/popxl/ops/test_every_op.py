"""Every op in all its dtypes, on replicas, in place, and with inputs that do not fit."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popart import popart_exception
from popxl import ops
from popxl.ops import collectives, var_updates

from runtime.tests.popxl.ops.every_op import CASES, ELSEWHERE, Case
from runtime.tests.popxl.ops.op_agreement import assert_equal, assert_op, exact
from runtime.tests.popxl.ops.op_testing import foreign_tensor, main_graph, run_ops

EVERY_DTYPE = [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]
REFUSED = (popart_exception, ValueError)


def functions() -> set[str]:
    """Op functions of the public namespaces, without those that only report on others."""
    names = {
        name
        for module in (ops, var_updates, collectives)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    # Effects alone: host_store in every test that runs something, the others in their own files.
    return {n for n in names if not n.endswith("_with_info")} - {"host_store", "remote_store"}


def draw(case: Case, rng: Generator, dtype: str) -> list[np.ndarray]:
    return [make(rng, dtype) for make in case.inputs]


def tensors(case: Case, rng: Generator, dtype: str) -> list[popxl.Tensor]:
    arrays = draw(case, rng, dtype)
    return [popxl.variable(a, popxl.dtype.as_dtype(a.dtype)) for a in arrays]


def test_every_function_has_a_case():
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    assert functions() - {*CASES} - elsewhere == set()
    assert elsewhere & {*CASES} == set()


def test_every_function_documents_its_errors():
    """In its own docstring or in that of the function that it refers to."""
    modules = (ops, var_updates, collectives)
    found = [getattr(module, name) for module in modules for name in functions() & {*dir(module)}]
    errors = re.compile("Raises:|:func:")
    assert {f.__name__ for f in found if not errors.search(f.__doc__ or "")} == set()


@pytest.mark.parametrize(("file", "names"), ELSEWHERE.items())
def test_the_others_are_tested_where_the_table_says(file: str, names: tuple[str, ...]):
    text = Path(__file__).parent.joinpath(file).read_text()
    assert [name for name in names if name not in text] == []


def test_every_variant_in_place_has_a_case():
    inplace = {name for name in functions() if name.endswith("_")}
    assert inplace - {*CASES} == {"replicated_all_reduce_"}


# What PopXL does not differentiate, although values of floats go in and out.
WITHOUT_GRADIENT = {
    "remote_load", "ipu_copy", "detach", "conv_transpose", "batch_norm_inference", "io_tile_copy",
    "scaled_add", "increment_mod", "lamb_square", "nll_loss_with_softmax_grad", "adam_updater",
    "lamb_updater", "repeat", "equal", "greater", "logical_and", "logical_or", "logical_not",
    "isnan", "isinf", "isfinite", "argmax", "argmin", "histogram",
}  # fmt: skip
# Writes in place have no gradient, and the case of host_load loads outside of its graph.
NO_FUNCTION = {"adam_var_update", "host_load"} | {name for name in CASES if name.endswith("_")}


@pytest.mark.parametrize("name", sorted({*CASES} - NO_FUNCTION))
def test_gradients_exist_where_popxl_has_them(rng: Generator, name: str):
    """Their values are checked by test_gradients, which covers every kind that has a rule."""
    case = CASES[name]
    with main_graph() as main:
        graph = main.ir.create_graph(case.build, *tensors(case, rng, "float32"))
        floats = [t for t in graph.inputs if t.dtype is popxl.float32]
        floats = floats[:1] if name == "fmod" else floats
        wanted = [t for t in graph.outputs if t.dtype is popxl.float32]
        differentiate = functools.partial(
            popxl.transforms.autodiff, graph, grads_provided=wanted, grads_required=floats
        )
        if name in WITHOUT_GRADIENT:
            with pytest.raises(popart_exception):
                differentiate()
        else:
            assert len(differentiate().graph.outputs) == len(floats)


@pytest.mark.parametrize(("name", "dtype"), EVERY_DTYPE)
def test_dtypes(rng: Generator, name: str, dtype: str):
    case = CASES[name]
    arrays = draw(case, rng, dtype)
    found = run_ops(case.build, *arrays)
    for got, wanted in zip(found, exact(case.oracle, arrays), strict=True):
        assert_equal(got, wanted, half_atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_replicas(rng: Generator, name: str):
    case = CASES[name]
    first, second = (draw(case, rng, "float32") for _ in range(2))
    assert_op(case.build, case.oracle, first, second)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.refused])
def test_shapes_that_do_not_fit(rng: Generator, name: str):
    case = CASES[name]
    wrong = Case(case.build, case.oracle, case.refused or ())
    with main_graph(), pytest.raises(REFUSED):
        case.build(*tensors(wrong, rng, case.dtypes[0]))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.one_dtype])
def test_dtypes_that_do_not_fit(rng: Generator, name: str):
    case = CASES[name]
    with main_graph():
        given = tensors(case, rng, "float32")
        given[1] = ops.cast(given[1], popxl.int32)
        with pytest.raises((popart_exception, TypeError)):
            case.build(*given)


@pytest.mark.parametrize("name", [name for name in CASES if name != "host_load"])
def test_tensors_of_other_graphs(rng: Generator, name: str):
    case, foreign = CASES[name], foreign_tensor()
    with main_graph():
        for index in range(len(case.inputs)):
            given = tensors(case, rng, case.dtypes[0])
            given[index] = foreign
            with pytest.raises((*REFUSED, TypeError)):
                case.build(*given)
