"""Files that are no checkpoints end in one line, whatever their bytes."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.small_configs import small_config
from tests.utils.checkpoint_cases import State, canonical, refusal, save_sharded, saved
from tests.utils.published_module import deepspeed_file
from utils.checkpoint import open_checkpoint
from utils.checkpoint_files import open_tensors
from utils.errors import UserError


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    assert "neither a file nor a folder" in refusal(tmp_path / "fifo.pt")


def test_file_without_permission(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, state)
    opened = Path.open

    def refuse(self: Path, *arguments: str) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize(
    ("content", "explanation"),
    [
        (b"", "is empty"),
        (b"hello\n" * 100, "is no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"  <!DOCTYPE html><html></html>", "web page"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (b"\x00" * 4096, "is no checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, explanation: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert explanation in refusal(path) or name.endswith("safetensors")


def test_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for names in (["a.txt"], ["folder/a.txt", "folder/version"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "3\n")
        assert "zip file but no PyTorch checkpoint" in refusal(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.5, 0.99, 0.9999])
def test_truncated_files(tmp_path: Path, state: State, suffix: str, fraction: float) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(canonical(state), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert "cut short" in refusal(path) or fraction < 0.01


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_directories_never_escape_as_other_errors(
    tmp_path: Path, state: State, rng: np.random.Generator, suffix: str
) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(canonical(state), path)
    sound = np.fromfile(path, np.uint8)
    for _ in range(60):
        content = sound.copy()
        where = rng.integers(0, 8000, 3) * rng.choice([1, -1])
        content[where] = rng.integers(0, 256, 3)
        content.tofile(path)
        with contextlib.suppress(UserError):
            open_checkpoint(path, small_config())


class Attack:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "system"), (builtins.eval, "eval"), (os.mkdir, "mkdir")]
)
def test_pickle_that_wants_to_run_something_is_refused(
    tmp_path: Path, state: State, function: Callable[..., object], name: str
) -> None:
    target = tmp_path / "created"
    argument = str(target) if function is os.mkdir else f"__import__('os').mkdir({str(target)!r})"
    content = {**deepspeed_file(state), "config": Attack(function, argument)}
    message = refusal(saved(tmp_path, content))
    assert "refused" in message
    assert name in message
    assert not target.exists()


def test_contents_that_are_no_tensors(tmp_path: Path, state: State) -> None:
    assert "holds a list" in refusal(saved(tmp_path, [1, 2]))
    assert "holds no tensors" in refusal(saved(tmp_path, {}))
    assert "is of type int" in refusal(saved(tmp_path, {"a": 1}))
    assert "is of type Tensor" in refusal(saved(tmp_path, {"a": torch.ones(2, 2).to_sparse()}))
    assert "'module' is of type NoneType" in refusal(
        saved(tmp_path, {**deepspeed_file(state), "module": None})
    )


def test_folders_without_one_checkpoint(tmp_path: Path, state: State) -> None:
    assert "holds no checkpoint" in refusal(tmp_path)
    saved(tmp_path, state, "a.pt")
    saved(tmp_path, state, "b.pt")
    assert "holds 2 checkpoint files (a.pt, b.pt)" in refusal(tmp_path)
    saved(tmp_path, state, "mp_rank_01_model_states.pt")
    assert "several model-parallel ranks" in refusal(tmp_path)


def test_tag_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path, state: State) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside, inside):
        folder.mkdir()
    saved(outside, state, "mp_rank_00_model_states.pt")
    saved(tmp_path, state, "mp_rank_00_model_states.pt")
    for tag in ("../outside", "..", ".", "", str(outside), "\0", "absent"):
        (inside / "latest").write_text(tag)
        assert "holds no checkpoint" in refusal(inside)


@pytest.mark.parametrize(
    "text",
    [
        *("", "no json", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'),
        *('{"weight_map": {"a": "../x.pt"}}', '{"weight_map": {"a": "/etc/passwd"}}', "[" * 99999),
    ],
)
def test_damaged_indexes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    assert "is no checkpoint index" in refusal(path)


def test_index_that_promises_too_much(tmp_path: Path, state: State) -> None:
    index = save_sharded(tmp_path, canonical(state), "safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["lm.more"] = "model-0.safetensors"
    index.write_text(json.dumps(content))
    assert "says that lm.more is in model-0.safetensors" in refusal(index)
    (tmp_path / "model-0.safetensors").unlink()
    assert "names model-0.safetensors, which is missing" in refusal(index)


def row(**changes: object) -> dict[str, object]:
    return {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        {"a": row(dtype="F7")},
        {"a": row(shape=[2, 3])},
        {"a": row(shape=[-2, -2])},
        {"a": row(shape=[2, 2.0])},
        {"a": row(shape="22")},
        {"a": row(data_offsets=[8, 0])},
        {"a": row(data_offsets=[-8, 0])},
        {"a": row(data_offsets=[0])},
        {"a": row(data_offsets=[0, 2**62], shape=[2**61])},
        {"a": row(dtype=[])},
        {"a": None},
        {"a": {}},
        {},
        [],
        None,
    ],
)
def test_hostile_safetensors_headers(tmp_path: Path, header: object) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refusal(path)
    sound = json.dumps({"a": row()}).encode()
    path.write_bytes(len(sound).to_bytes(8, "little") + sound + bytes(8))
    assert open_tensors(path)["a"].shape == (2, 2)


def test_safetensors_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in (2**63, 2**30, 1, 0):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        refusal(path)
