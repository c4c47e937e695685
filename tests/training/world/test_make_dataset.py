"""The made world as a dataset: read as any other, of the split asked for, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.world import make_dataset
from training.world.captions import parse_caption
from training.world.kinds import FACTS
from training.world.questions import fact_question
from training.world.scenes import split_of
from utils.dataset_files import picture_path, read_record, sample_files
from utils.images import load_image


def make(root: Path, *options: str) -> Path:
    """Six pictures of 64 pixels."""
    argv = [str(root), "--pictures", "6", "--side", "64", *options]
    assert make_dataset.main(argv) == 0
    return root


@pytest.mark.parametrize("split", ["train", "held_out", "held_out_combinations"])
def test_samples_have_a_picture_a_caption_and_a_question_of_a_scene_of_the_split(
    tmp_path: Path, split: str
):
    root = make(tmp_path / "world", "--split", split)
    files = sample_files(root)
    assert len(files) == 6
    for file in files:
        record = read_record(file)
        scene = parse_caption(record["captions"][0])
        assert scene is not None
        assert split_of(scene) == split
        asked = [fact_question(scene, fact) for fact in FACTS]
        metadata = record["metadata"]
        assert (metadata["question"], *metadata["answers"]) in [(q.text, q.answer) for q in asked]
        assert load_image(picture_path(root, file, record)).size == (64, 64)


def test_a_seed_gives_the_same_files(tmp_path: Path):
    one, same = make(tmp_path / "one"), make(tmp_path / "same")
    other = make(tmp_path / "other", "--seed", "1")
    contents = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (one, same, other)
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize("words", [["--picture", "3"], ["--side", "wide"], ["--split", "all"]])
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
):
    assert make_dataset.main([str(tmp_path / "new"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words[0] in line


def test_a_folder_that_exists_is_not_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert make_dataset.main([str(tmp_path)]) == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err
