"""Loads as views, adopted weights, errors, traces, settings and the null backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import popart
import popxl
import pytest
from popxl import ops
from popxl_torch.settings import Settings, read_settings


def _options(ir: popxl.Ir, **options: str) -> None:
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = value


def _layers(count: int, side: int, **options: str) -> tuple[popxl.Session, list, tuple]:
    """h -> w[n] @ h over the entries of one remote buffer."""
    ir = popxl.Ir()
    _options(ir, **options)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((side, side), popxl.float32, entries=count)
        zero = np.zeros((), "float32")
        zero.flags.writeable = False
        empty = np.broadcast_to(zero, (side, side))
        weights = [popxl.remote_variable(empty, buffer, n) for n in range(count)]

        def layer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return ops.remote_load(buffer, n) @ h, n + 1

        source = popxl.h2d_stream((side, 1), popxl.float32)
        target = popxl.d2h_stream((side, 1), popxl.float32)
        with popxl.name_scope("input"):
            h = ops.host_load(source)
        with popxl.name_scope("layers"):
            n = popxl.constant(0, popxl.uint32)
            h, _ = ops.repeat(ir.create_graph(layer, h, n), count, h, n)
        ops.host_store(target, h)
    return popxl.Session(ir, "ipu_hw"), weights, (source, target)


def test_read_only_arrays_of_any_strides_are_adopted(rng: np.random.Generator) -> None:
    session, (first, second), (source, target) = _layers(2, 8)
    data = rng.normal(size=(8, 8)).astype("float32")
    data.flags.writeable = False
    session.write_variables_data({first: data.T, second: data})
    assert np.shares_memory(session.get_tensor_data(first), data)
    x = rng.normal(size=(8, 1)).astype("float32")
    with session:
        remote = session._engine.memory.remote
        tensor = remote.get(first._value.data.buffer, 0)
        assert tensor.data_ptr() == data.ctypes.data
        assert tensor.stride() == (1, 8)
        result = session.run({source: x})[target]
    np.testing.assert_allclose(result, data @ (data.T @ x), rtol=1e-5, atol=1e-5)


def test_writable_arrays_are_copied(rng: np.random.Generator) -> None:
    session, (first, _), _ = _layers(2, 4)
    data = rng.normal(size=(4, 4)).astype("float32")
    session.write_variable_data(first, data)
    data[:] = 0
    assert np.abs(session.get_tensor_data(first)).min() > 0


def test_a_load_is_a_view_unless_the_buffer_is_stored_to() -> None:
    session, weights, (source, _) = _layers(3, 16, trace="ignored")
    session._engine.trace.path = ""
    with session:
        session.run({source: np.zeros((16, 1), "float32")})
    regions = {r["name"]: r for r in session._engine.trace.as_dict()["regions"]}
    assert regions["layers"]["copied_bytes"] == 0
    assert len(weights) == 3


def test_the_trace_counts_iterations_and_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "trace.json"
    session, weights, (source, _) = _layers(3, 16, trace=str(path))
    data = rng.normal(size=(16, 16)).astype("float32")
    session.write_variables_data(dict.fromkeys(weights, data))
    with session:
        for _ in range(2):
            session.run({source: np.zeros((16, 1), "float32")})
    trace = json.loads(path.read_text())
    regions = {region["name"]: region for region in trace["regions"]}
    assert trace["version"] == 1
    assert trace["runs"] == 2
    assert regions["layers"]["runs"] == 2 * 3
    assert regions["layers"]["loaded_bytes"] == 2 * 3 * data.nbytes
    assert regions["input"]["runs"] == 2
    assert sum(region["ms"] for region in trace["regions"]) <= trace["total_ms"]
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def test_an_entry_out_of_range_names_buffer_and_line() -> None:
    session, (weights, *_), (source, _) = _layers(3, 4)
    with session:
        weights._value.data.buffer.entries = 2
        message = "2 entries: there is no entry 2"
        with pytest.raises(popart.popart_runtime_error, match=message) as caught:
            session.run({source: np.zeros((4, 1), "float32")})
        weights._value.data.buffer.entries = 3
    assert "test_engine.py" in caught.value.__notes__[0]


def test_a_kernel_error_keeps_its_type_and_names_the_users_line() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        table = popxl.variable(np.zeros((4, 2), "float32"))
        rows = popxl.h2d_stream((3,), popxl.int32)
        out = popxl.d2h_stream((3, 2), popxl.float32)
        ops.host_store(out, ops.gather(table, ops.host_load(rows)))
    with popxl.Session(ir, "ipu_hw") as session:
        session._engine.backend.bind = lambda step: lambda *tensors: [][1]
        with pytest.raises(IndexError) as caught:
            session.run({rows: np.zeros(3, "int32")})
    assert "built at" in caught.value.__notes__[0]


def test_the_null_backend_runs_a_model_that_no_memory_holds() -> None:
    session, weights, (source, target) = _layers(28, 2**17, backend="null", trace="ignored")
    session._engine.trace.path = ""
    with session:
        result = session.run({source: np.zeros((2**17, 1), "float32")})[target]
    assert result.shape == (2**17, 1)
    loaded = {r["name"]: r for r in session._engine.trace.as_dict()["regions"]}["layers"]
    assert loaded["loaded_bytes"] == len(weights) * 4 * 2**34


def test_settings_come_from_options_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({}) == Settings()
    monkeypatch.setenv("POPXL_DEVICE", "cpu")
    monkeypatch.setenv("POPXL_TORCH_ARITHMETIC", "fast")
    assert read_settings({}) == Settings(device="cpu", arithmetic="fast")
    options = {"popxl_torch.arithmetic": "exact", "target.syncReplicasIndependently": "true"}
    assert read_settings(options) == Settings(device="cpu", arithmetic="exact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"popxl_torch.arithmetics": "fast"}, "Unknown engine option"),
        ({"popxl_torch.arithmetic": "quick"}, "must be one of"),
    ],
)
def test_wrong_settings(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(options)


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_arithmetic_of_half_precision(arithmetic: str, rng: np.random.Generator) -> None:
    """exact rounds each result to float16; fast keeps float32 until the result is stored."""
    ir = popxl.Ir()
    _options(ir, arithmetic=arithmetic)
    with ir.main_graph:
        source = popxl.h2d_stream((64,), popxl.float16)
        target = popxl.d2h_stream((64,), popxl.float16)
        x = ops.host_load(source)
        ops.host_store(target, ops.exp(ops.sin(x) * x) + x)
    x = rng.normal(size=64).astype("float16")
    with popxl.Session(ir, "ipu_hw") as session:
        result = session.run({source: x})[target]
    wide = x.astype("float32")

    def rounded(t: np.ndarray) -> np.ndarray:
        return t.astype("float16").astype("float32") if arithmetic == "exact" else t

    expected = rounded(np.exp(rounded(rounded(np.sin(wide)) * wide))) + wide
    np.testing.assert_array_max_ulp(result, expected.astype("float16"), maxulp=1)
    assert result.dtype == np.float16


def test_overflow_in_half_precision_is_infinite() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        target = popxl.d2h_stream((), popxl.float16)
        x = popxl.constant(60000.0, popxl.float16)
        ops.host_store(target, x + x)
    with popxl.Session(ir, "ipu_hw") as session:
        assert np.isposinf(session.run()[target])


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "cuda:x", "gpu"])
def test_a_device_that_is_not_there_is_refused_when_the_session_is_made(device: str) -> None:
    with pytest.raises(RuntimeError, match=f"Device '{device}' was asked for; there are"):
        _layers(1, 4, device=device)


def test_the_trace_tells_branches_apart(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    ir = popxl.Ir()
    _options(ir, trace=str(path))

    def branch(name: str) -> popxl.Graph:
        def build(x: popxl.Tensor) -> popxl.Tensor:
            with popxl.name_scope(name):
                return ops.exp(x)

        return ir.create_graph(build, popxl.TensorSpec((2,), popxl.float32))

    with ir.main_graph, popxl.in_sequence():
        choice, source = popxl.h2d_stream((), popxl.bool), popxl.h2d_stream((2,), popxl.float32)
        x = ops.host_load(source)
        branches = branch("yes"), branch("no")
        with popxl.name_scope("choice"):
            (x,) = ops.conditional(ops.host_load(choice), *branches, [x], [x])
        with popxl.name_scope("end"):
            ops.host_store(popxl.d2h_stream((2,), popxl.float32), x)
    with popxl.Session(ir, "ipu_hw") as session:
        for taken in (True, True, False):
            session.run({choice: np.array(taken), source: np.zeros(2, "float32")})
    regions = json.loads(path.read_text())["regions"]
    runs = {region["name"]: region["runs"] for region in regions}
    assert runs == {"": 3, "choice": 3, "yes": 2, "no": 1, "end": 3}
