"""What runs store to lies elsewhere where a budget has no room for it: the same bits."""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import popart
import popxl
import pytest
import torch
from popxl import ops
from popxl_torch.executor import placement
from popxl_torch.executor.spill import Spill

from runtime.tests.popxl_torch.stand_in_devices import OwnMemory, standing_in

LAYERS, SLOTS, WIDTH = 4, 1000, 8
LAYER = 2 * SLOTS * WIDTH * 4
REPLICAS = 2
SMAPS = Path("/proc/self/smaps")


@pytest.fixture(autouse=True)
def known_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "anonymous_bytes", lambda: 1000)
    monkeypatch.setattr(placement, "SCRATCH_BYTES", 0)


class Memory:
    """Each layer notes a row in two tables of its own, and gives the sum of all noted so far."""

    def __init__(self, replicas: int = 1, seen: int = SLOTS, **options: object) -> None:
        """``seen``: rows that are added up."""
        ir = popxl.Ir(replicas)
        for name, value in options.items():
            ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = str(value)
        with ir.main_graph, popxl.in_sequence():
            spec = (SLOTS, WIDTH), popxl.float32, LAYERS
            tables = [popxl.remote_buffer(*spec) for _ in range(2)]
            once = popxl.remote_buffer((WIDTH,), popxl.float32, 1)
            self.row = popxl.h2d_stream((WIDTH,), popxl.float32)
            self.slot = popxl.h2d_stream((1,), popxl.int32)
            self.target = popxl.d2h_stream((WIDTH,), popxl.float32)
            slot = ops.host_load(self.slot)

            def layer(
                h: popxl.Tensor, n: popxl.Tensor, slot: popxl.Tensor
            ) -> tuple[popxl.Tensor, popxl.Tensor]:
                for table in tables:
                    whole = ops.remote_load(table, n)
                    row = ops.reshape(h, (1, WIDTH))
                    ops.dynamic_update_(whole, slot, row, [0], [1], no_overlap=True)
                    ops.remote_store(table, n, whole)
                    h = ops.tanh(h + ops.sum(whole[:seen], 0) * 0.1)
                return h, n + 1

            with popxl.name_scope("layers"):
                h, n = ops.host_load(self.row), popxl.constant(0, popxl.int32)
                body = ir.create_graph(layer, h, n, slot)
                h, _ = ops.repeat(body, LAYERS, h, n, slot)
            with popxl.name_scope("end"):
                h = h + ops.remote_load(once, 0)
                ops.remote_store(once, 0, h)
            ops.host_store(self.target, h)
        self.replicas = replicas
        self.session = popxl.Session(ir, "ipu_hw")

    def run(self, slot: int) -> np.ndarray:
        shape = (self.replicas,) if self.replicas > 1 else ()
        rows = np.random.default_rng(slot).normal(size=(*shape, WIDTH)).astype("float32")
        slots = np.full((*shape, 1), slot, "int32")
        return self.session.run({self.row: rows, self.slot: slots})[self.target]

    def off(self) -> list[int]:
        """Numbers of the layers that lie in the file, by where their memory is."""
        remote = self.session._engine.memory.remote
        if remote.spill is None:
            return []
        found = set()
        for (buffer, number), tensor in remote.entries.items():
            memory = remote.spill.memory((buffer, number))
            if memory is not None and buffer.entries == LAYERS:
                assert memory.ctypes.data == tensor.data_ptr()
                found.add(number)
        return sorted(found)


@contextmanager
def opened(**options) -> Iterator[Memory]:
    model = Memory(**options)
    with model.session:
        yield model


def _results(model: Memory) -> list[np.ndarray]:
    return [model.run(slot) for slot in (0, 1, 5, 1)]


def _needed(tmp_path: Path) -> int:
    with opened(memory_plan=tmp_path / "plan.json"):
        plan = json.loads((tmp_path / "plan.json").read_text())
    return plan["process_bytes"] + plan["activation_bytes"] + WIDTH * 4


@pytest.mark.parametrize("executor", ["plan", "interpreter"])
@pytest.mark.parametrize(("layers", "off"), [(0, [0, 1, 2, 3]), (2.5, [0, 2]), (3, [0]), (4, [])])
def test_every_budget_gives_the_same_bits(
    tmp_path: Path, layers: float, off: list[int], executor: str
):
    with opened() as model:
        expected = _results(model)
    budget = _needed(tmp_path) + int(layers * LAYER)
    with opened(device_memory=budget, executor=executor) as model:
        found = _results(model)
        assert model.off() == off
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("executor", ["plan", "interpreter"])
def test_replicas_that_differ_have_each_their_own(tmp_path: Path, executor: str):
    with opened(replicas=REPLICAS) as model:
        expected = _results(model)
        assert not np.array_equal(expected[-1][0], expected[-1][1])
    with opened(replicas=REPLICAS, device_memory=50_000, executor=executor) as model:
        np.testing.assert_array_equal(_results(model), expected)
        assert model.off() == [0, 1, 2, 3]


def test_what_is_stored_outlives_leaving_the_session(tmp_path: Path):
    with opened() as model:
        expected = _results(model) + _results(model)
    model = Memory(device_memory=_needed(tmp_path) + LAYER)
    found = []
    for _ in range(2):
        with model.session:
            found += _results(model)
            assert len(model.off()) == LAYERS - 1
    np.testing.assert_array_equal(found, expected)


def test_a_smaller_budget_moves_what_is_stored(tmp_path: Path):
    with opened() as model:
        expected = _results(model) + _results(model)
    model = Memory(device_memory=_needed(tmp_path) + 3 * LAYER)
    with model.session:
        found = _results(model)
        engine = model.session._engine
        engine._placer.settings = placement.replace(engine.settings, device_memory=60_000)
        engine._placer.place({}, engine.varying)
        assert model.off() == [0, 1, 2, 3]
        found += _results(model)
    np.testing.assert_array_equal(found, expected)


def test_the_plan_says_what_is_where(tmp_path: Path):
    file = tmp_path / "said.json"
    budget = _needed(tmp_path) + 3 * LAYER
    with opened(device_memory=budget, memory_plan=file, backend="null"):
        pass
    plan = json.loads(file.read_text())
    assert plan["stored"] == [
        {"name": "layers", "slabs": LAYERS, "bytes": LAYERS * LAYER,
         "resident_slabs": 3, "resident_bytes": 3 * LAYER},
        {"name": "end", "slabs": 1, "bytes": WIDTH * 4,
         "resident_slabs": 1, "resident_bytes": WIDTH * 4},
    ]  # fmt: skip
    assert plan["stored_bytes"] == 3 * LAYER + WIDTH * 4
    assert plan["peak_bytes"] == budget


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = Memory(device_memory=_needed(tmp_path))
    said = r"no room for 262,144 bytes .* No space left .* TMPDIR"
    with pytest.raises(popart.session.OutOfMemoryException, match=said):
        model.session.__enter__()


def test_nothing_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    budget = _needed(tmp_path)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with opened(device_memory=budget) as model:
        model.run(0)
        assert model.off()
        assert not list(folder.iterdir())


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say which pages were written")
@pytest.mark.parametrize("replicas", [1, REPLICAS])
def test_only_what_is_noted_is_written_to_the_file(tmp_path: Path, replicas: int):
    with opened(replicas=replicas, device_memory=_needed(tmp_path)) as model:
        model.run(0)
        assert model.off() == [0, 1, 2, 3]
        spill = model.session._engine.memory.remote.spill
        first = spill.memory(next(iter(spill.sizes)))
        # A row in each table for each replica, and `once`.
        assert 0 < _written_pages(first.ctypes.data) <= replicas * 2 * LAYERS + 1


def _written_pages(start: int) -> int:
    """Of a mapped file, by where its memory begins: pages written to and not on the disk yet."""
    lines = iter(SMAPS.read_text().splitlines())
    next(line for line in lines if line.startswith(f"{start:x}-"))
    about = dict(line.split(":", 1) for line in itertools.takewhile(_says_more, lines))
    written = ("Shared_Dirty", "Private_Dirty")
    return sum(int(about[key].split()[0]) for key in written) * 1024 // mmap.PAGESIZE


def _says_more(line: str) -> bool:
    return line.split(maxsplit=1)[0].endswith(":")


# -- beside a device with memory of its own ---------------------------------------------------


@contextmanager
def on_device(monkeypatch: pytest.MonkeyPatch, **options) -> Iterator[tuple[Memory, OwnMemory]]:
    with standing_in(monkeypatch) as made, opened(**options) as model:
        yield model, made[0]


def _least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> int:
    """Bytes of a device for all but the layers' tables, if not all of these lie there."""
    file = tmp_path / "least.json"
    with on_device(monkeypatch, memory_plan=file, **options):
        whole = json.loads(file.read_text())
    budget = whole["peak_bytes"] - 1
    with on_device(monkeypatch, memory_plan=file, device_memory=budget, **options):
        plan = json.loads(file.read_text())
    assert plan["activation_bytes"] > whole["activation_bytes"]
    return plan["activation_bytes"]


@pytest.mark.parametrize("executor", ["plan", "interpreter"])
@pytest.mark.parametrize(("layers", "off"), [(0, [0, 1, 2, 3]), (2.5, [0, 2]), (3, [0]), (4, [])])
def test_every_budget_of_a_device_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: float, off: list[int], executor: str
):
    with opened() as model:
        expected = _results(model)
    budget = _least(tmp_path, monkeypatch) + WIDTH * 4 + int(layers * LAYER)
    plan = tmp_path / "plan.json"
    options = {"device_memory": budget, "executor": executor, "memory_plan": plan}
    with on_device(monkeypatch, **options) as (model, device):
        np.testing.assert_array_equal(_results(model), expected)
        assert model.off() == off
        assert len(device.links) == bool(off)
        assert all(link.pinned_bytes >= len(off) * LAYER for link in device.links)
    said = json.loads(plan.read_text())
    assert said["stored"][0]["resident_slabs"] == LAYERS - len(off)
    assert said["peak_bytes"] <= budget


def test_a_plan_for_a_gpu_says_what_lies_on_the_host(tmp_path: Path):
    file, options = tmp_path / "plan.json", {"device": "cuda:0", "backend": "null"}
    with opened(memory_plan=file, **options):
        whole = json.loads(file.read_text())
    assert whole["stored"][0]["resident_slabs"] == LAYERS
    with opened(memory_plan=file, device_memory=whole["peak_bytes"] - LAYER, **options):
        plan = json.loads(file.read_text())
    assert 0 < plan["stored"][0]["resident_slabs"] < LAYERS
    assert plan["stored_bytes"] == sum(row["resident_bytes"] for row in plan["stored"])


@pytest.mark.parametrize("executor", ["plan", "interpreter"])
def test_replicas_that_differ_have_each_their_own_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
):
    with opened(replicas=REPLICAS) as model:
        expected = _results(model)
    budget = _least(tmp_path, monkeypatch, replicas=REPLICAS) + REPLICAS * (LAYER + WIDTH * 4)
    options = {"replicas": REPLICAS, "device_memory": budget, "executor": executor}
    with on_device(monkeypatch, **options) as (model, _):
        np.testing.assert_array_equal(_results(model), expected)
        assert len(model.off()) == LAYERS - 1


@pytest.mark.parametrize("seen", [1, 6, SLOTS])
def test_only_what_is_read_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int):
    with opened(seen=seen) as model:
        expected = _results(model)
    trace = tmp_path / "trace.json"
    budget = _least(tmp_path, monkeypatch, seen=seen) + WIDTH * 4 + LAYER
    options = {"seen": seen, "device_memory": budget, "trace": trace}
    with on_device(monkeypatch, **options) as (model, device):
        np.testing.assert_array_equal(_results(model), expected)
        assert device.brought == [seen * WIDTH] * (len(expected) * 2 * (LAYERS - 1))
    regions = {r["name"]: r for r in json.loads(trace.read_text())["regions"]}
    assert regions["layers"]["copied_bytes"] == sum(device.brought) * 4


def test_what_lies_on_the_host_outlives_leaving_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened() as model:
        expected = _results(model) + _results(model) + _results(model)
    budget, found = _least(tmp_path, monkeypatch) + WIDTH * 4, []
    with standing_in(monkeypatch) as made:
        model = Memory(device_memory=budget)
        engine = model.session._engine
        for layers in (1, 3, 0):
            engine._placer.settings = placement.replace(
                engine.settings, device_memory=budget + layers * LAYER
            )
            with model.session:
                found += _results(model)
                assert len(model.off()) == LAYERS - layers
    np.testing.assert_array_equal(found, expected)
    # What is not used any more is not pinned any more.
    assert [link.closed for link in made[0].links] == [True, True, False]


@pytest.mark.parametrize(("most_pinned", "free"), [(0, 1 << 40), (1 << 40, LAYER)])
def test_memory_that_cannot_be_pinned_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most_pinned: int,
    free: int,
):
    with opened() as model:
        expected = _results(model)
    budget = _least(tmp_path, monkeypatch)
    monkeypatch.setattr(OwnMemory, "most_pinned", most_pinned)
    monkeypatch.setattr(placement, "available_bytes", lambda: free)
    caplog.clear()
    with on_device(monkeypatch, device_memory=budget) as (model, device):
        np.testing.assert_array_equal(_results(model), expected)
        assert len(model.off()) == LAYERS
        assert device.links[0].pinned_bytes == 0
    (said,) = (record.getMessage() for record in caplog.records)
    assert ("take longer" in said, "lie in a file" in said) == (free > LAYER, free == LAYER)


def test_a_store_that_waits_for_no_load_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    budget = _least(tmp_path, monkeypatch)
    monkeypatch.setattr(Spill, "settle", lambda self: None)
    # What is stored once in each run is loaded before.
    with (
        on_device(monkeypatch, device_memory=budget) as (model, _),
        pytest.raises(AssertionError, match="written before it was read"),
    ):
        model.run(0)


def test_the_next_entry_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append((start, size)))
    with opened(device_memory=_needed(tmp_path)) as model:
        model.run(0)
        spill = model.session._engine.memory.remote.spill
        base = np.frombuffer(spill._memory, np.uint8).ctypes.data
        spill._file._thread.shutdown()
    expected = [
        (spill.memory((buffer, (number + 1) % LAYERS)).ctypes.data - base, LAYER // 2)
        for number in range(LAYERS)
        for buffer in sorted(spill.buffers, key=lambda buffer: buffer.id)
        if buffer.entries == LAYERS
    ]
    assert asked == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.gpu
@pytest.mark.parametrize("seen", [6, SLOTS])
def test_entries_beside_a_gpu_give_the_same_bits(tmp_path: Path, seen: int):
    options = {"device": "cuda", "seen": seen, "memory_plan": tmp_path / "plan.json"}
    with opened(**options) as model:
        expected = [model.run(slot) for slot in [*range(40)] * 2]
        whole = json.loads((tmp_path / "plan.json").read_text())
    budget = whole["peak_bytes"] - LAYER // 2
    with opened(device_memory=budget, **options) as model:
        for slot, wanted in zip([*range(40)] * 2, expected, strict=True):
            np.testing.assert_array_equal(model.run(slot), wanted)
        assert model.off()
