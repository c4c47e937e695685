"""Seeds, prints, patterns, hints, routes, and what is not implemented."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons import debugging
from popxl_addons.patterns import apply_pre_alias_patterns
from popxl_addons.testing_utils import TensorInput, ops_of_type, run_module
from popxl_addons.transforms import batch_serialisation
from popxl_addons.transforms.batch_serialisation import BatchSerialResult, RemoteHandle


def double(x: popxl.Tensor) -> popxl.Tensor:
    return x + x


def test_seeds_keep_their_value_from_run_to_run(ir4: popxl.Ir):
    pair = ir4.replica_grouping(group_size=2)
    with popxl.in_sequence():
        variable, seed = addons.seed_variable(3, pair)
        alone, _ = addons.seed_variable(3)
        out = popxl.d2h_stream((2,), popxl.uint32)
        ops.host_store(out, seed)
        seed += 1
    assert (variable.shape, variable.dtype, variable.name) == ((2,), popxl.uint32, "random_seed")
    assert alone.shape_on_host == (4, 2)
    start = popxl.create_seeds(3, replicas=2)
    with popxl.Session(ir4, "ipu_hw") as session:
        for i in range(3):
            np.testing.assert_array_equal(session.run()[out], np.repeat(start, 2, axis=0) + i)
        np.testing.assert_array_equal(session.get_tensor_data(variable), start + 3)


@pytest.mark.parametrize(
    ("level", "environment", "prints"),
    [("DEBUG", "INFO", False), ("INFO", "INFO", True), ("DEBUG", "TRACE", True)],
)
def test_prints(
    level: Any, environment: str, prints: bool, ir: popxl.Ir, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(debugging, "MODEL_LOG_LEVEL_VAL", debugging.LEVELS[environment])
    t = popxl.variable(np.zeros((), "float32"))
    assert (addons.print_tensor(t, level=level) is not t) == prints
    addons.print_text("here", t, level=level)
    addons.print_text("here", level=level)
    assert len(popxl.gcg()._pb_graph.getOps()) == 3 * prints


def test_an_unknown_level_fails_at_import():
    out = subprocess.run(
        [sys.executable, "-c", "import popxl_addons"],
        env={**os.environ, "MODEL_LOG_LEVEL": "LOUD"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "KeyError: 'LOUD'" in out.stderr


def test_hints_change_nothing(ir: popxl.Ir):
    x = popxl.variable(np.zeros((2, 2), "float32"))
    graph = ir.create_graph(lambda t: t @ t, x)
    before = len(ir.main_graph.tensors)
    for level in ("no_patterns", "minimal", "default", "all"):
        apply_pre_alias_patterns(ir, level)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="'most'"):
        apply_pre_alias_patterns(ir, "most")  # type: ignore[arg-type]
    addons.set_available_memory_proportion_by_ipu(ir, (0.4, 0.6))
    addons.set_graph_available_memory_proportion_by_ipu(graph, [0.4])
    with pytest.raises(IndexError):
        addons.set_available_memory_proportion_by_ipu(ir, [])
    (product,) = graph._pb_graph.getOps()
    assert product.getAvailableMemoryProportion() == 0.4
    addons.disable_fc_pass(ir)
    assert not product.useFullyConnectedPass()
    addons.enable_fc_pass(ir)
    assert product.useFullyConnectedPass()
    assert len(ir.main_graph.tensors) == before


def test_subgraphs(ir: popxl.Ir):
    x = popxl.variable(np.zeros(2, "float32"))
    inner, other = ir.create_graph(double, x), ir.create_graph(double, x)
    outer = ir.create_graph(lambda_of(inner), x)
    ops.call(outer, x)
    main = ir.main_graph
    assert addons.is_subgraph(main, inner)
    assert addons.is_subgraph(outer, inner)
    assert addons.is_subgraph(inner, inner)
    assert not addons.is_subgraph(main, other)
    assert not addons.is_subgraph(inner, outer)


def lambda_of(graph: popxl.Graph) -> Any:
    def caller(x: popxl.Tensor) -> popxl.Tensor:
        return ops.call(graph, x)[0]

    return caller


class Affine(addons.Module):
    """scale * (a - b) + shift"""

    def build(self, a: popxl.Tensor, scale: float, b: popxl.Tensor) -> popxl.Tensor:
        shift = self.add_variable_input("shift", lambda: np.ones(2, "float32"))
        return (a - b) * scale + shift


def test_run_module_takes_tensors_in_any_order(rng: np.random.Generator):
    a, b = rng.normal(size=(2, 2)).astype("float32")
    for arguments, named in (
        ((TensorInput(a), 3.0, TensorInput(b)), {}),
        ((), {"b": TensorInput(b), "a": TensorInput(a), "scale": 3.0}),
    ):
        (result,) = run_module(Affine(), *arguments, **named)
        np.testing.assert_allclose(result, (a - b) * np.float32(3) + 1, rtol=1e-6)
    shift = rng.normal(size=2).astype("float32")
    (result,) = run_module(
        Affine(), TensorInput(a), 0.0, TensorInput(b), weights=lambda v: {v.shift: shift}
    )
    np.testing.assert_array_equal(result, shift)


def test_run_module_takes_dtypes():
    class Same(addons.Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            return x + x

    (result,) = run_module(Same(), TensorInput(np.ones(2), popxl.float16))
    assert result.dtype == np.float16


def test_ops_of_type():
    assert ops_of_type([1, "a", 2.0, True], int) == 2


def test_serial_buffers(ir4: popxl.Ir):
    t = popxl.variable(np.zeros((4, 2), "float32"))
    buffer = addons.batch_serial_buffer(t, steps=3, rows=2)
    assert (buffer.tensor_shape, buffer.entries) == ((4, 2), 6)
    cut = addons.batch_serial_buffer(t.spec, 1, 1, ir4.replica_grouping())  # type: ignore[arg-type]
    assert (cut.tensor_shape, cut.meta_shape) == ((2,), (4, 2))
    assert RemoteHandle(buffer) == RemoteHandle(buffer, 0, None)
    other = popxl.variable(np.zeros(1, "float32"))
    result = BatchSerialResult(addons.GraphWithNamedArgs(popxl.gcg()), {}, {t: other})
    assert result.remap_tensors(addons.NamedTensors(w=t)).w is other
    with batch_serialisation.null_context() as value:
        assert value is None
