"""The whole recipe in a few steps: a checkpoint that the application reads, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from config.parsing import load_preset
from execution.magma import Magma
from training.world import make_model
from training.world.make_model import WEIGHTS_FILE
from utils.checkpoint import open_checkpoint
from utils.tokenizer import has_tokenizer


def make(folder: Path) -> Path:
    """Every stage for two steps; the folder with the model."""
    steps = [f"--{stage}_steps=2" for stage in ("text", "encoder", "caption")]
    out = folder / "model"
    argv = [f"--out={out}", f"--work={folder / 'work'}", *steps, "--pictures=64"]
    assert make_model.main(argv) == 0
    return out


@pytest.mark.long
def test_the_recipe_gives_the_same_model_again_and_the_application_runs_it(tmp_path: Path):
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    assert (first / WEIGHTS_FILE).read_bytes() == (second / WEIGHTS_FILE).read_bytes()
    assert has_tokenizer(first)
    open_checkpoint(first, load_preset("world"))
    with Magma.from_pretrained(first, config="world") as magma:
        picture = Image.new("RGB", (128, 128), (80, 140, 60))
        assert magma.generate(picture, "A picture of", max_new_tokens=3)


@pytest.mark.long
def test_a_finished_recipe_only_exports_again(tmp_path: Path):
    out = make(tmp_path)
    before = (out / WEIGHTS_FILE).read_bytes()
    (out / WEIGHTS_FILE).unlink()
    make(tmp_path)
    assert (out / WEIGHTS_FILE).read_bytes() == before


def test_a_stage_says_how_long_it_took_by_the_clock_and_in_cpu_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    times = {"perf_counter": iter((0.0, 90.0)), "process_time": iter((60.0, 240.0))}
    for name, values in times.items():
        monkeypatch.setattr(make_model.time, name, values.__next__)
    with caplog.at_level("INFO"), make_model.timed("text"):
        pass
    assert caplog.messages == ["text: 1.5 minutes, 3.0 minutes of CPU time"]
