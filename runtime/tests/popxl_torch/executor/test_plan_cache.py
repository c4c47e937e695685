"""Plans kept by content: fresh, kept and read ones give the same; files that are no good."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.executor import plan_cache, planner
from popxl_torch.ir.content import content_digest
from popxl_torch.ir.records import Program as Records

from runtime.tests.popxl_torch.programs import build, tensor_parallel_mlp
from runtime.tests.popxl_torch.random_programs import draw_program, run_program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache on disk that keeps everything, and none in the process."""
    monkeypatch.setenv("POPXL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_cache, "DISK_FROM_S", 0.0)
    monkeypatch.setattr(plan_cache, "_memory", {})
    return tmp_path / "cache"


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is built from now on: an entry for each run of the passes."""
    calls: list[str] = []
    for name in ("to_functional", "lower"):
        function = getattr(planner, name)

        def counted(*args: object, name: str = name, function=function) -> object:
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(planner, name, counted)
    return calls


def _run(extra: float = 2.0) -> np.ndarray:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        source = popxl.h2d_stream((3,), popxl.float32, "x")
        target = popxl.d2h_stream((3,), popxl.float32, "y")
        row = popxl.constant(np.array([1.0, extra, 3.0]), popxl.float32)
        ops.host_store(target, ops.relu(ops.host_load(source)) * row)
    with popxl.Session(ir, "ipu_hw") as session:
        return session.run({source: np.array([-1, 2, 3], "float32")})[target]


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("seed", range(200, 204))
def test_fresh_kept_and_read_plans_give_the_same_bits(
    seed: int, replicas: int, folder: Path, lowered: list[str]
) -> None:
    rng = np.random.default_rng([seed, replicas])
    program = draw_program(rng, length=14, replicas=replicas)
    arrays = {
        "stream": rng.uniform(-1, 1, (replicas, 4, 4)).astype("float32"),
        "shared": rng.uniform(-1, 1, (4, 4)).astype("float32"),
        "own": rng.uniform(-1, 1, (replicas, 4, 4)).astype("float32"),
    }
    fresh = run_program(program, arrays, {})
    assert lowered
    lowered.clear()
    kept = run_program(program, arrays, {})
    plan_cache._memory.clear()
    read = run_program(program, arrays, {})
    assert lowered == []
    for first, second, third in zip(fresh, kept, read, strict=True):
        assert first.tobytes() == second.tobytes() == third.tobytes()


def test_quick_plans_are_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "DISK_FROM_S", 3600.0)
    _run()
    assert not folder.exists()


def test_without_a_folder_plans_are_kept_in_the_process(
    lowered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POPXL_CACHE_DIR", "POPART_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plan_cache, "_memory", {})
    first = _run(5.0)
    lowered.clear()
    np.testing.assert_array_equal(_run(5.0), first)
    assert lowered == []


def test_the_process_keeps_so_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "_memory", {})
    monkeypatch.setattr(plan_cache, "KEPT", 5)
    for extra in range(6):
        np.testing.assert_array_equal(_run(float(extra)), [0, 2 * extra, 9])
    assert len(plan_cache._memory) == 5


def _spoil(path: Path, how: str) -> None:
    head, text = path.read_text().split("\n")
    data = {
        "empty": b"",
        "cut short": path.read_bytes()[:-5],
        "no text": os.urandom(200),
        "another format": path.read_bytes().replace(b"plan 1", b"plan 0"),
        "another record": (head.replace(head.split()[-2], "0" * 32) + "\n" + text).encode(),
        "changed": path.read_bytes().replace(b"Relu", b"Exp_"),
    }
    path.write_bytes(data[how])


SPOILT = ["empty", "cut short", "no text", "another format", "another record", "changed"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_is_no_good_is_reported_and_written_anew(
    how: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _run()
    files = sorted(folder.iterdir())
    good = {path: path.read_bytes() for path in files}
    for path in files:
        _spoil(path, how)
    spoilt = {path for path in files if path.read_bytes() != good[path]}
    assert spoilt
    plan_cache._memory.clear()
    with caplog.at_level(logging.WARNING, "popxl_torch"):
        np.testing.assert_array_equal(_run(), expected)
    assert len(caplog.records) == len(spoilt)
    assert all("is ignored and made anew" in record.message for record in caplog.records)
    assert {path: path.read_bytes() for path in sorted(folder.iterdir())} == good


def _forged(change) -> None:
    """Changes the record of the main plan in the process and so skips the check of files."""
    for key, text in plan_cache._memory.items():
        content = json.loads(text)
        if isinstance(content[0], dict) and "Relu" in text:
            change(content[0])
            plan_cache._memory[key] = json.dumps(content)


def _set(*path: object):
    *outer, last, value = path

    def change(plan: object) -> None:
        for name in outer:
            plan = plan[name]  # type: ignore[index]
        plan[last] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("body", 1, 1, 0, "Call"),
        _set("body", 1, 1, 0, "Relu(); import os #"),
        _set("body", 1, 1, 1, [[10**6, 0, 0]]),
        _set("body", 1, 1, 1, [["0); exit(", 0, 0]]),
        _set("body", 1, 1, 1, [[-1, 0, 0]]),
        _set("body", 1, 1, 3, {"stream": {"Stream": 99}}),
        _set("body", 1, 1, 3, {"stream": {"Program": 0}}),
        _set("specs", []),
        _set("specs", 0, ["(3,)", "float32", []]),
        _set("slots", "many"),
        _set("constants", [[0, 0, ["", "x"]]]),
        _set("body", [[], [[]] * 3, []]),
        _set("notes", [1, 2, 3]),
    ],
)
def test_a_record_that_is_no_plan_is_refused(
    change, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan_cache, "_memory", {})
    expected = _run()
    _forged(change)
    with caplog.at_level(logging.WARNING, "popxl_torch"):
        np.testing.assert_array_equal(_run(), expected)
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_written_costs_one_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file, no folder")
    with caplog.at_level(logging.WARNING, "popxl_torch"):
        _run()
    (record,) = caplog.records
    assert "cannot be kept" in record.message


def test_processes_at_once_share_a_folder(folder: Path) -> None:
    code = """
import runtime.tests.popxl_torch.executor.test_plan_cache as t
t.plan_cache.DISK_FROM_S = 0.0
for n in range(8):
    t.plan_cache._memory.clear()
    assert t._run(float(n)).tolist() == [0, 2.0 * n, 9]
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.communicate()[1] == ""
        assert worker.returncode == 0
    assert all(path.suffix == ".json" for path in folder.iterdir())


# -- content ----------------------------------------------------------------------------------


def _mlp(**changes: object) -> Records:
    program = build(tensor_parallel_mlp, replicas=2)
    for name, value in changes.items():
        setattr(program, name, value)
    return program


def test_programs_built_twice_are_equal() -> None:
    assert content_digest(_mlp()) == content_digest(_mlp())


def test_values_of_variables_do_not_count() -> None:
    program = _mlp()
    for value in program.main.values.values():
        if value.kind == "variable":
            value.data.host = value.data.host + 1
    assert content_digest(program) == content_digest(_mlp())


def _one_op(change: str) -> Records:
    def body(ir: popxl.Ir) -> None:
        size = 4 if change == "shape" else 3
        dtype = popxl.float16 if change == "dtype" else popxl.float32
        x = ops.host_load(popxl.h2d_stream((size, size), dtype, "z" if change == "name" else "x"))
        axis = 1 if change == "attribute" else 0
        y = ops.softmax(x, axis) if change != "kind" else ops.relu(x)
        row = popxl.constant(np.full(size, 2 if change == "constant" else 1), dtype)
        y = row - y if change == "operands" else y - row
        entries = 3 if change == "buffer" else 2
        buffer = popxl.remote_buffer(y.shape, y.dtype, entries)
        ops.remote_store(buffer, 1 if change == "entry" else 0, y)

    return build(body, replicas=2 if change == "replicas" else 1)


CHANGES = [
    "shape", "dtype", "name", "attribute", "kind", "constant", "operands", "buffer", "entry",
    "replicas",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_any_difference_counts(change: str) -> None:
    assert content_digest(_one_op("")) == content_digest(_one_op(""))
    assert content_digest(_one_op(change)) != content_digest(_one_op(""))


def test_how_variables_lie_on_replicas_counts() -> None:
    program = _mlp()
    for value in program.main.values.values():
        if value.kind == "variable":
            value.data.assignment = (1, 0)
    assert content_digest(program) != content_digest(_mlp())


@pytest.mark.parametrize("option", [("arithmetic", "fast"), ("join_shards", "0"), ("fuse", "none")])
def test_settings_count(
    option: tuple[str, str], lowered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_cache, "_memory", {})
    _run()
    lowered.clear()
    monkeypatch.setenv(f"POPXL_TORCH_{option[0].upper()}", option[1])
    _run()
    assert lowered
