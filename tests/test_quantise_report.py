"""The report on quantised weights: its figures against plain formulas, its data, its program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantise_report, record
from config.parsing import load_preset
from utils.checkpoint_writer import write_random_checkpoint

PICTURE = Path(__file__).parents[1] / "examples" / "lake_cabin.jpg"


def test_equal_distributions_have_no_divergence(rng: np.random.Generator) -> None:
    p = [quantise_report._log_softmax(rng.normal(size=(3, 5)))]
    found = quantise_report.compare(p, p)
    assert found["same_choice"] == [1.0] * 3
    np.testing.assert_allclose(found["kl_nats"], 0, atol=1e-12)


def test_divergence_and_choice_of_a_known_pair() -> None:
    p, q = (np.log(np.array([[a, 1 - a]])) for a in (0.75, 0.25))
    found = quantise_report.compare([p], [q])
    np.testing.assert_allclose(found["kl_nats"], [0.5 * np.log(3)])
    assert found["same_choice"] == [0.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "no pairs"), ("a.png\n", "row 1 has 1 columns"), ("a,b\nc,d,e\n", "row 2 has 3 columns")],
)
def test_wrong_data_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    assert quantise_report.main(["x.pt", "--data", str(tmp_path / "pairs.csv")]) == 2
    assert words in capsys.readouterr().err


def test_a_report_of_a_small_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, load_preset("tiny"), dtype="float16", positions=16)
    (tmp_path / "pairs.csv").write_text(f'{PICTURE},"A lake, a cabin"\n{PICTURE},A\n')
    command = [str(path), "--config", "tiny", "--data", str(tmp_path / "pairs.csv")]
    assert quantise_report.main(command) == 0
    content = record.newest(tmp_path / "results")["quantise_report"]
    samples = content["samples"]
    mean = {f: np.mean(samples[f"{f}: blocks: kl_nats"]) for f in ("int8", "int4")}
    assert 0 < mean["int8"] < mean["int4"] < 1
    error = {f: max(samples[f"{f}: blocks: weight_error"]) for f in ("int8", "int4")}
    assert 0 < error["int8"] < 0.02 < error["int4"] < 0.2
    names = [row[0] for row in content["rows"]]
    assert names[:2] == ["int8: blocks", "int8: blocks, adapters, head"]
    assert names[2] == "int4: blocks"


def test_a_part_that_does_not_fit_a_format_is_left_out() -> None:
    config = load_preset("world")
    assert quantise_report.most_parts(config, "int8") == ("blocks", "adapters", "head")
    assert quantise_report.most_parts(config, "int4") == ("blocks", "head")


def test_scenes_of_the_shipped_model_have_captions(tmp_path: Path) -> None:
    pairs = quantise_report.scene_pairs(tmp_path, 2)
    assert [path.suffix for path, _ in pairs] == [".png", ".png"]
    assert all(path.is_file() and text.startswith("A picture of") for path, text in pairs)
