"""What runs store to lies in a file where a budget has no room for it: the same bits."""

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
from popxl import ops
from popxl_torch.executor import placement

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

    def __init__(self, replicas: int = 1, **options: object) -> None:
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
                    h = ops.tanh(h + ops.sum(whole, 0) * 0.1)
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
