"""TaskSession: names, counts, checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_addons import InputStreams, NamedTensors, OutputStreams, TaskSession
from popxl_addons.task_session import initialise_memmap_dir_from_checkpoint, write_variables_pb


def make_session(replicas: int = 1, **options: Any) -> TaskSession:
    """y = x + w, w += 1; state w and a.b."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        each = ir.replica_grouping(group_size=1)
        shape = (replicas, 2) if replicas > 1 else (2,)
        w = popxl.variable(np.zeros(shape, "float32"), name="w", replica_grouping=each)
        b = popxl.variable(np.arange(3, dtype="float16"), name="b")
        inputs = InputStreams(x=((2,), popxl.float32))
        outputs = OutputStreams(y=((2,), popxl.float32))
        ops.host_store(outputs.y, ops.host_load(inputs.x) + w)
        w += popxl.constant(np.ones(2, "float32"))
    state = NamedTensors.from_dict({"w": w, "a.b": b})
    return TaskSession(inputs, outputs, state, ir=ir, device_desc="ipu_hw", **options)


class Loader:
    """A data loader that is saved as text."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def save(self, path: str) -> None:
        Path(path).write_text(str(self.position))

    def resume(self, filename: str) -> None:
        self.position = int(Path(filename).read_text())

    def get_state(self) -> None:
        self.seen = self.position


def run_once(session: TaskSession) -> np.ndarray:
    return session.run({session.inputs.x: np.ones(2, "float32")})[session.outputs.y]


def test_runs_are_counted():
    session = make_session()
    with session:
        np.testing.assert_array_equal(run_once(session), [1, 1])
        np.testing.assert_array_equal(run_once(session), [2, 2])
    assert session.session_state == {"steps": 2}
    session.add_session_state_info({"epoch": 3})
    assert session.session_state == {"steps": 2, "epoch": 3}


def test_streams_without_names():
    session = make_session()
    ir = popxl.Ir()
    with ir.main_graph:
        x, y = (
            popxl.h2d_stream((2,), popxl.float32, "x"),
            popxl.d2h_stream((2,), popxl.float32, "y"),
        )
        ops.host_store(y, ops.host_load(x))
    session = TaskSession([x], [y], NamedTensors(), 1, ir, "ipu_hw")
    assert session.inputs.x is x
    assert session.outputs["y"] is y


def test_named_data_have_host_shapes():
    session = make_session(replicas=2)
    data = session.get_named_tensors_data()
    assert data.w.shape == (2, 2)
    np.testing.assert_array_equal(data.a.b, [0, 1, 2])
    assert data.a.b.dtype == np.float16


def test_load_from_session(rng: np.random.Generator):
    source, target = make_session(), make_session()
    data = rng.normal(size=2).astype("float32")
    write_variables_pb(source, {source.state.w: data})
    target.state.insert("extra", target.state.a.b)
    target.load_from_session(source)
    np.testing.assert_array_equal(target.get_named_tensors_data().w, data)
    with pytest.raises(ValueError, match=r"missing \['extra'\]"):
        target.load_from_session(source, report_missing="error")


@pytest.mark.parametrize("replicas", [1, 2])
def test_checkpoints(replicas: int, tmp_path: Path, rng: np.random.Generator):
    session = make_session(replicas)
    shape = session.state.w.shape_on_host
    data = rng.normal(size=shape).astype("float32")
    session.write_variables_data({session.state.w: data})
    session.dataloader = Loader(7)
    session.add_session_state_info({"steps": 5})
    session.save_checkpoint(str(tmp_path / "c"))
    files = sorted(str(p.relative_to(tmp_path / "c")) for p in (tmp_path / "c").rglob("*.*"))
    assert files == ["dataloader.bin", "model/a.b.npz", "model/w.npz", "session_info.json"]
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "model" / "w.npz")["w"], data)

    other = make_session(replicas)
    other.dataloader = Loader()
    other.load_checkpoint(str(tmp_path / "c"), report_missing="error")
    np.testing.assert_array_equal(other.get_named_tensors_data().w, data)
    assert other.session_state == {"steps": 5}
    assert other.dataloader.seen == 7


def test_old_checkpoints_are_deleted(tmp_path: Path):
    session = make_session(max_checkpoints=2)
    for name in "abc":
        session.save_checkpoint(str(tmp_path / name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
    session.save_checkpoint(str(tmp_path / "c"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
    assert (tmp_path / "c" / "model" / "w.npz").exists()


def test_saving_to_the_same_path_keeps_it(tmp_path: Path):
    session = make_session()
    for _ in range(2):
        session.save_checkpoint(str(tmp_path / "a"))
    assert (tmp_path / "a" / "model" / "w.npz").exists()


def test_differences_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    session = make_session()
    session.save_checkpoint(str(tmp_path))
    (tmp_path / "model" / "w.npz").unlink()
    np.savez(tmp_path / "model" / "new.npz", new=np.zeros(1))
    with caplog.at_level(logging.WARNING):
        session.load_checkpoint(str(tmp_path))
    assert "missing ['w'], unknown ['new']" in caplog.text
    with pytest.raises(ValueError, match="Checkpoint variables: missing"):
        session.load_checkpoint(str(tmp_path), report_missing="error")
    caplog.clear()
    session.load_checkpoint(str(tmp_path / "nowhere"), report_missing="none")
    assert caplog.text == ""
    assert session.session_state == {"steps": 0}


def test_state_that_a_checkpoint_lacks_is_reported(tmp_path: Path):
    session = make_session()
    session.save_checkpoint(str(tmp_path))
    assert json.loads((tmp_path / "session_info.json").read_text()) == {"steps": 0}
    session.add_session_state_info({"epoch": 1})
    with pytest.raises(ValueError, match=r"session state: missing \['epoch'\]"):
        session.load_checkpoint(str(tmp_path), report_missing="error")


def test_dataloaders(caplog: pytest.LogCaptureFixture):
    session = make_session()
    with caplog.at_level(logging.WARNING):
        assert session.dataloader is None
    assert "no dataloader" in caplog.text
    with pytest.raises(ValueError, match="methods save and resume"):
        session.dataloader = object()


def test_memory_maps_are_copied(tmp_path: Path):
    raw = np.memmap(tmp_path / "w.npy", "float32", "w+", shape=(3,))
    raw[:] = [1, 2, 3]
    ir = popxl.Ir()
    with ir.main_graph:
        w = popxl.variable(raw, name="w")
        y = popxl.d2h_stream((3,), popxl.float32)
        ops.host_store(y, w + w)
    session = TaskSession([], [y], NamedTensors(w=w), ir=ir, device_desc="ipu_hw")
    session.save_checkpoint(str(tmp_path / "c"))
    initialise_memmap_dir_from_checkpoint(tmp_path / "c", tmp_path / "maps")  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "maps" / "w.npy", "float32"), [1, 2, 3])
