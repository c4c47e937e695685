"""The converter as a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.parsing import load_preset
from execution.convert import main
from utils.checkpoint_writer import write_random_checkpoint
from utils.model_folder import folder_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, load_preset("tiny"), dtype="float32", positions=16)
    return path


def test_it_converts_and_verifies(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder"
    assert main([str(checkpoint), str(out), "--config", "tiny", "--dtype", "float32"]) == 0
    assert main(["--verify", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"wrote {out}: ")
    assert lines[1].endswith("tensors are as they were written")


def test_a_model_folder_says_which_model_it_is(tmp_path: Path, checkpoint: Path) -> None:
    first, second = tmp_path / "float32", tmp_path / "int8"
    assert main([str(checkpoint), str(first), "--config", "tiny", "--dtype", "float32"]) == 0
    assert main([str(first), str(second), "--dtype", "int8"]) == 0
    assert folder_config(second) == folder_config(first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "CHECKPOINT OUT"),
        (["absent.pt"], "CHECKPOINT OUT"),
        (["absent.pt", "out"], "no such file"),
        (["x", "--verify", "y"], "stands alone"),
        (["--verify", "absent"], "absent"),
    ],
)
def test_wrong_input_ends_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_checkpoint_of_another_size_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), str(tmp_path / "out")]) == 2
    assert "other sizes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
