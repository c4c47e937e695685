"""What a GPU changes: plans on the null backend, runs on devices that stand for one, and numbers
where there is one."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.backends.torch_backend import TorchBackend
from popxl_torch.executor import file_reader, placement
from popxl_torch.executor.device_slots import RING_PIECES, DeviceSlots
from popxl_torch.executor.planner import Planner
from popxl_torch.settings import Settings

from runtime.tests.popxl_torch.random_programs import draw_program, run_program
from runtime.tests.popxl_torch.stand_in_devices import OwnMemory, Replayer, standing_in
from runtime.tests.popxl_torch.streamed_models import (
    LAYERS,
    SIDE,
    SLAB,
    Model,
    random_loads,
    write_weights,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def layered(layers: int = 3) -> tuple[popxl.Ir, popxl.HostToDeviceStream]:
    """x -> x @ w[i] for entry after entry of a remote buffer, in a loop."""
    ir = popxl.Ir()
    rng = np.random.default_rng(0)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((8, 8), popxl.float16, layers)
        for entry in range(layers):
            weight = rng.normal(size=(8, 8)).astype(np.float16)
            popxl.remote_variable(weight, buffer, entry)
        stream = popxl.h2d_stream((2, 8), popxl.float16)

        def step(x: popxl.Tensor, entry: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return x @ ops.remote_load(buffer, entry), entry + 1

        x, entry = ops.host_load(stream), popxl.constant(0, popxl.int32)
        body = ir.create_graph(step, x, entry)
        y, _ = ops.repeat(body, layers, x, entry)
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype), y)
    return ir, stream


def source_of_the_plan(caplog: pytest.LogCaptureFixture, device: str, **settings: object) -> str:
    """The function that is written for the plan of ``layered`` on a device, without running it."""
    ir, stream = layered()
    options = ir._pb_ir.getSessionOptions().engineOptions
    settings |= {"backend": "null", "device": device, "debug": 3}
    for name, value in settings.items():
        options[f"popxl_torch.{name}"] = str(value)
    caplog.clear()
    with (
        caplog.at_level(logging.WARNING, "popxl_torch"),
        popxl.Session(ir, "ipu_model") as session,
    ):
        session.run({stream: np.zeros((2, 8), np.float16)})
    message = next(r.getMessage() for r in reversed(caplog.records) if "def run" in r.getMessage())
    return message[message.index("def ") :]


# -- plans, on the null backend -------------------------------------------------------------------


def test_weights_that_all_stay_are_a_table_on_a_gpu_too(caplog: pytest.LogCaptureFixture) -> None:
    for device in ("cpu", "cuda:0"):
        assert "RemoteLoad" not in source_of_the_plan(caplog, device)


def test_weights_beyond_the_budget_are_loaded_in_each_iteration(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    source_of_the_plan(caplog, "cuda:0", memory_plan=plan)
    whole = json.loads(plan.read_text())
    assert whole["budget_bytes"] == whole["slots"] == 0
    assert whole["phases"][0]["resident_slabs"] == 3
    budget = whole["peak_bytes"] - 1
    source = source_of_the_plan(caplog, "cuda:0", memory_plan=plan, device_memory=budget)
    assert source.count("RemoteLoad") == 1
    assert source.index("for ") < source.index("RemoteLoad")
    assert json.loads(plan.read_text())["phases"][0]["streamed_slabs"] == 3


def test_a_budget_of_a_gpu_that_is_too_small_says_what_is_needed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(popart.session.OutOfMemoryException, match=r"at least .* are needed"):
        source_of_the_plan(caplog, "cuda:0", device_memory="1MiB")


def test_what_needs_nothing_of_the_host_is_recorded_on_a_gpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = source_of_the_plan(caplog, "cuda:0")
    part, run = source[: source.index("def run")], source[source.index("def run") :]
    assert "for " in part
    assert "MatMul" in part
    assert ["HostLoad" in run, "Recorded" in run, "HostStore" in run] == [True] * 3
    assert "for " not in run
    for others in ({"device": "cpu"}, {"device": "cuda:0", "cuda_graphs": 0}):
        assert "Recorded" not in source_of_the_plan(caplog, **others)


def test_why_steps_are_not_recorded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "popxl_torch"):
        ir, stream = layered()
        options = ir._pb_ir.getSessionOptions().engineOptions
        options |= {"popxl_torch.backend": "null", "popxl_torch.device": "cuda:0"}
        with popxl.Session(ir, "ipu_model") as session:
            session.run({stream: np.zeros((2, 8), np.float16)})
    reasons = [r.getMessage() for r in caplog.records if "not recorded" in r.getMessage()]
    assert any("HostLoad: it reads a stream of the host" in reason for reason in reasons)


# -- runs on devices that stand for one -----------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_weights(tmp_path / "weights.bin", rng)


def run_model(path: Path, **options: object) -> tuple[list[np.ndarray], Model]:
    model = Model(path, **options)
    with model.session:
        return [model.run(seed) for seed in range(5)], model


def needed(path: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes for everything but weights."""
    with standing_in(monkeypatch):
        run_model(path, memory_plan=plan)
    content = json.loads(plan.read_text())
    return content["peak_bytes"] - sum(p["resident_bytes"] for p in content["phases"])


@pytest.mark.parametrize("weights", ["mapped", "read", "pinned"])
@pytest.mark.parametrize("slabs", [1, 2, 3.5, LAYERS])
def test_every_budget_of_a_device_gives_the_same_bits(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slabs: float, weights: str
) -> None:
    expected, _ = run_model(path)
    budget = needed(path, tmp_path / "plan", monkeypatch) + int(slabs * SLAB)
    with standing_in(monkeypatch) as made:
        found, _ = run_model(path, device_memory=budget, weights=weights)
    np.testing.assert_array_equal(found, expected)
    (link,) = made[0].links
    assert link.memory_bytes <= slabs * SLAB
    assert made[0].limits == [budget, 0]


def test_without_a_budget_what_is_free_is_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = needed(path, tmp_path / "plan", monkeypatch) + 3 * SLAB
    for options in ({}, {"device_memory": "auto"}):
        with standing_in(monkeypatch, free=free) as made:
            run_model(path, memory_plan=tmp_path / "plan", **options)
        plan = json.loads((tmp_path / "plan").read_text())
        assert (plan["budget_bytes"], plan["slots"]) == (free, 2)
        assert made[0].limits == [free, 0]


def test_sessions_on_a_gpu_may_take_what_their_budgets_add_up_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    whole = types.SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: whole)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    first, second, beside = (TorchBackend(Settings(device="cpu"), 1) for _ in range(3))
    first.device = second.device = torch.device("cuda", 0)
    beside.device = torch.device("cuda", 1)
    for backend, num_bytes in ((first, 200), (second, 300), (beside, 50), (first, 0), (first, 900)):
        backend.limit_memory(num_bytes)
    assert shares == [0.2, 0.5, 0.05, 0.3, 1.0]
    del first, backend
    second.limit_memory(400)
    second.limit_memory(0)
    assert shares[5:] == [0.4, 1.0]


def test_a_table_stays_on_the_host_where_there_is_no_room(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run_model(path)
    room = needed(path, tmp_path / "plan", monkeypatch) + LAYERS * SLAB
    for extra, on_host in ((SIDE * SIDE * 4, 0), (0, SIDE * SIDE * 4)):
        with standing_in(monkeypatch):
            found, _ = run_model(path, device_memory=room + extra, memory_plan=tmp_path / "plan")
        table, layers = json.loads((tmp_path / "plan").read_text())["phases"]
        assert (table["mapped_bytes"], layers["resident_slabs"]) == (on_host, LAYERS)
        np.testing.assert_array_equal(found, expected)


def test_weights_in_the_hosts_memory_are_pinned_if_it_has_room(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, _ = run_model(path)
    budget = needed(path, tmp_path / "plan", monkeypatch) + 2 * SLAB
    for free, warned in ((1 << 40, 0), (SLAB, 1)):
        caplog.clear()
        with standing_in(monkeypatch), monkeypatch.context() as patch:
            patch.setattr(placement, "available_bytes", lambda free=free: free)
            found, _ = run_model(path, device_memory=budget, weights="pinned")
        np.testing.assert_array_equal(found, expected)
        assert sum("not pinned" in r.getMessage() for r in caplog.records) == warned


RING = RING_PIECES * file_reader.PIECE_BYTES


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (0, ["copies of weights take longer", "a small ring"]),
        (RING, ["a small ring"]),
        (RING + 2 * SLAB, ["a small ring"]),
        (RING + LAYERS * SLAB, []),
    ],
)
def test_memory_that_cannot_be_pinned_is_said_once(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
    said: list[str],
) -> None:
    expected, _ = run_model(path)
    budget = needed(path, tmp_path / "plan", monkeypatch) + 2 * SLAB
    monkeypatch.setattr(OwnMemory, "most_pinned", room)
    caplog.clear()
    with standing_in(monkeypatch):
        found, _ = run_model(path, device_memory=budget, weights="pinned")
    np.testing.assert_array_equal(found, expected)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(said)
    assert all(part in message for part, message in zip(said, messages, strict=True))


def test_what_is_no_file_is_not_held_twice_unless_that_is_asked_for(
    path: Path, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [rng.normal(size=(SIDE, SIDE)).astype("float32") for _ in range(2 * LAYERS + 1)]
    budget = needed(path, tmp_path / "plan", monkeypatch) + 2 * SLAB
    results = []
    for weights, held in (("mapped", 0), ("pinned", LAYERS * SLAB)):
        with standing_in(monkeypatch) as made:
            model = Model(path, device_memory=budget, weights=weights)
            with model.session:
                model.session.write_variables_data(dict(zip(model.weights, arrays, strict=True)))
                results.append(model.run(0))
                pinned = made[0].links[-1].pinned_bytes - RING
                assert pinned >= held
                assert bool(pinned) == bool(held)
    np.testing.assert_array_equal(*results)


def test_new_weights_reach_the_device(
    path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written anew, or changed where they are and sent again."""
    arrays = [rng.normal(size=(SIDE, SIDE)).astype("float32") for _ in range(2 * LAYERS + 1)]
    with standing_in(monkeypatch):
        on_device = Model(path)
    on_cpu, results = Model(path), []
    for model in (on_device, on_cpu):
        own = [array.copy() for array in arrays]
        with model.session:
            model.run(0)
            model.session.write_variables_data(dict(zip(model.weights, own, strict=True)))
            results.append(model.run(0))
            own[3] *= 2
            model.session.write_variables_data(dict(zip(model.weights, own, strict=True)))
            results.append(model.run(0))
    np.testing.assert_array_equal(results[:2], results[2:])
    assert not np.array_equal(results[0], results[1])


@pytest.mark.parametrize("seed", range(6))
def test_random_loads_on_a_device_give_the_same_bits(
    path: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, plan = random_loads(path, seed), tmp_path / "plan"
    with standing_in(monkeypatch):
        random_loads(path, seed, memory_plan=plan)
    most = json.loads(plan.read_text())["peak_bytes"]
    ran = 0
    for share in (0.5, 0.7, 0.9):
        with standing_in(monkeypatch):
            try:
                found = random_loads(path, seed, device_memory=int(most * share))
            except popart.session.OutOfMemoryException:
                continue
        ran += 1
        np.testing.assert_array_equal(found, expected)
    assert ran


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_agree_on_a_device_that_records(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    replicas = (1, 2, 4)[seed % 3]
    program, arrays = random_case(rng, replicas)
    expected = run_program(program, arrays, {}, runs=5)
    with standing_in(monkeypatch):
        found = run_program(program, arrays, {}, runs=5)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=str(program))


STORING = ("binary", "cache", "choice", "layout", "matmul", "nested_repeat", "remote",
           "remote_in_place", "window")  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_that_store_give_the_same_bits_within_every_budget(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, plan = np.random.default_rng([seed, 3]), tmp_path / "plan"
    replicas = (1, 2, 1)[seed % 3]
    program = draw_program(rng, length=10, replicas=replicas, names=STORING)
    _, arrays = random_case(rng, replicas)
    expected = run_program(program, arrays, {}, runs=5)
    # Budgets are then for what is stored alone.
    monkeypatch.setattr(Planner, "activation_bytes", lambda *_: 0)
    with standing_in(monkeypatch):
        run_program(program, arrays, {"memory_plan": str(plan)})
    stored, found_there = json.loads(plan.read_text())["stored_bytes"], []
    for share in (0.0, 0.4, 0.7, 1.0):
        options = {"device_memory": str(1 + int(stored * share)), "memory_plan": str(plan)}
        with standing_in(monkeypatch):
            found = run_program(program, arrays, options, runs=5)
        found_there.append(json.loads(plan.read_text())["stored_bytes"])
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=str(program))
    assert found_there == sorted(found_there)
    assert (found_there[0], found_there[-1]) == (0, stored)


def test_a_part_is_recorded_once_and_replayed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run_model(path)
    with standing_in(monkeypatch) as made:
        found, _ = run_model(path)
    np.testing.assert_array_equal(found, expected)
    assert (made[0].replayer.recorded, made[0].replayer.replayed) == (1, 3)


def nested(path: Path, **options: object) -> list[np.ndarray]:
    """Small weights in a loop in a loop, which tables do not reach; then big ones in a loop."""
    ir = popxl.Ir()
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = str(value)
    mapped = np.asarray(np.memmap(path, "float32", "r", shape=(2 * LAYERS, SIDE, SIDE)))
    weights, shapes = {}, ((3, 8, 8), (LAYERS, 8, SIDE * SIDE // 8))
    with ir.main_graph, popxl.in_sequence():
        small, big = (popxl.remote_buffer(s[1:], popxl.float32, s[0]) for s in shapes)
        for buffer in (small, big):
            for entry in range(buffer.entries):
                shape = buffer.tensor_shape
                array = mapped[len(weights)].reshape(-1)[: np.prod(shape)].reshape(shape)
                weights[popxl.remote_variable(array, buffer, entry)] = array

        def inner(h: popxl.Tensor, n: popxl.Tensor) -> popxl.Tensor:
            return ops.tanh(ops.remote_load(small, n) @ h)

        def outer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            (h,) = ops.repeat(ir.create_graph(inner, h, n), 2, h, n)
            return h, n + 1

        def layer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return h + ops.remote_load(big, n)[:, :3], n + 1

        h = ops.host_load(source := popxl.h2d_stream((8, 3), popxl.float32))
        n = popxl.constant(0, popxl.int32)
        h, _ = ops.repeat(ir.create_graph(outer, h, n), 3, h, n)
        h, _ = ops.repeat(ir.create_graph(layer, h, n), LAYERS, h, n)
        ops.host_store(target := popxl.d2h_stream(h.shape, h.dtype), h)
    session = popxl.Session(ir, "ipu_hw")
    session.write_variables_data(weights)
    x = np.random.default_rng(0).normal(size=(5, 8, 3)).astype("float32")
    with session:
        return [session.run({source: row})[target] for row in x]


def test_nothing_is_asked_for_while_a_part_is_recorded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, plan = nested(path), tmp_path / "plan"
    with standing_in(monkeypatch):
        nested(path, memory_plan=plan)
    # Room for all small weights, not for all big ones.
    budget = json.loads(plan.read_text())["peak_bytes"] - 2 * SIDE * SIDE * 4
    record = Replayer.record

    def watched(self: Replayer, *args: Any) -> Any:
        with monkeypatch.context() as patch:  # what was asked for before may still arrive
            patch.setattr(DeviceSlots, "fill", lambda *_: pytest.fail("asks for weights"))
            return record(self, *args)

    monkeypatch.setattr(Replayer, "record", watched)
    with standing_in(monkeypatch) as made:
        found = nested(path, memory_plan=plan, device_memory=budget)
    assert json.loads(plan.read_text())["phases"][0]["streamed_slabs"] == 4
    np.testing.assert_array_equal(found, expected)
    assert made[0].replayer.recorded == 1


def random_case(rng: np.random.Generator, replicas: int) -> tuple[Any, dict[str, np.ndarray]]:
    shape = (replicas, 4, 4)
    return draw_program(rng, length=14, replicas=replicas), {
        "stream": rng.uniform(-1, 1, shape).astype("float32"),
        "shared": rng.uniform(-1, 1, (4, 4)).astype("float32"),
        "own": rng.uniform(-1, 1, shape).astype("float32"),
    }


# -- numbers, where there is a GPU ----------------------------------------------------------------


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_random_programs_agree_with_the_cpu(seed: int, replicas: int) -> None:
    rng = np.random.default_rng([seed, replicas])
    program, arrays = random_case(rng, replicas)
    expected = run_program(program, arrays, {"device": "cpu"})
    found = run_program(program, arrays, {"device": "cuda"})
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4, err_msg=str(program))


@needs_gpu
@pytest.mark.gpu
def test_weights_in_remote_memory_are_fetched() -> None:
    results = []
    for device in ("cpu", "cuda"):
        ir, stream = layered()
        ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.device"] = device
        with popxl.Session(ir, "ipu_model") as session:
            results += session.run({stream: np.ones((2, 8), np.float16)}).values()
    np.testing.assert_allclose(results[1], results[0], rtol=2e-2, atol=2e-2)


@pytest.fixture
def least(path: Path, tmp_path: Path) -> int:
    """Bytes of a GPU for everything but weights."""
    run_model(path, device="cuda", memory_plan=tmp_path / "plan")
    content = json.loads((tmp_path / "plan").read_text())
    return content["peak_bytes"] - sum(p["resident_bytes"] for p in content["phases"])


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["mapped", "read", "pinned"])
def test_every_budget_of_a_gpu_gives_the_same_bits(path: Path, least: int, weights: str) -> None:
    on_cpu, _ = run_model(path, device="cpu")
    whole, _ = run_model(path, device="cuda")
    np.testing.assert_allclose(whole, on_cpu, rtol=1e-3, atol=1e-4)
    for slabs in (1, 2, 3.5):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        budget = least + int(slabs * SLAB)
        found, _ = run_model(path, device="cuda", weights=weights, device_memory=budget)
        np.testing.assert_array_equal(found, whole)
        assert torch.cuda.max_memory_allocated() <= budget


@needs_gpu
@pytest.mark.gpu
def test_recorded_runs_on_a_gpu_give_the_same_bits(path: Path) -> None:
    eager, _ = run_model(path, device="cuda", cuda_graphs=0)
    recorded, model = run_model(path, device="cuda")
    backend = model.session._engine.backend
    assert isinstance(backend, TorchBackend)
    assert backend._recorder is not None
    assert backend._recorder.works
    np.testing.assert_array_equal(recorded, eager)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["mapped", "pinned"])
def test_copies_run_beside_work_in_the_right_order(path: Path, least: int, weights: str) -> None:
    whole, _ = run_model(path, device="cuda")
    options = {"weights": weights, "device_memory": least + 2 * SLAB}
    model = Model(path, device="cuda", **options)
    with model.session:
        for seed in [*range(5)] * 50:
            np.testing.assert_array_equal(model.run(seed), whole[seed])
