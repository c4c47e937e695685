"""The notebook's controls: what they ask the model, and what they show."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.parsing import load_preset
from execution.magma import Magma
from execution.playground import (
    EXAMPLES,
    Playground,
    phase_figure,
    phases_since,
    read_phases,
)
from execution.report import PhaseRow
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError

PICTURE = EXAMPLES / "02.jpg"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def magma(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Magma]:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_random_checkpoint(path, load_preset("tiny"), seed=3, dtype="float32")
    with Magma.from_pretrained(path, config="tiny", trace=trace) as magma:
        yield magma


@pytest.fixture
def playground(magma: Magma, trace: Path) -> Playground:
    playground = Playground(magma, trace)
    playground.max_new_tokens.value = 5
    playground.picture.value = PICTURE.name
    return playground


def uploaded(name: str, content: bytes) -> tuple[dict, ...]:
    """What ipywidgets makes of an upload."""
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    return (file | {"last_modified": datetime.now(UTC)},)


def png(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    patches = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(patches).resize((90, 60), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def test_an_answer_is_the_model_s_with_the_options_chosen(playground: Playground, magma: Magma):
    playground.prompt.value, playground.seed.value = "Say", 5
    playground.temperature.value, playground.top_k.value, playground.top_p.value = 1.3, 40, 0.6
    options = {"temperature": 1.3, "top_k": 40, "top_p": 0.6, "seed": 5, "max_new_tokens": 5}
    (expected,) = magma.generate(PICTURE, "Say", **options)
    assert playground.answer() == expected.text
    assert playground.text.value == expected.text
    playground.seed.value = 6
    assert playground.answer() != expected.text


def test_text_is_shown_as_it_comes(playground: Playground, monkeypatch):
    playground.text.observe(lambda change: shown.append(change["new"]), names="value")
    shown: list[str] = []
    playground.answer()
    assert len(shown) > 2
    assert all(later.startswith(sooner) for sooner, later in pairwise(shown))


def test_greedy_and_sampled_answers_are_compared(playground: Playground, magma: Magma):
    texts = playground.compare(samples=2)
    (greedy,) = magma.generate(PICTURE, "A picture of", temperature=0, max_new_tokens=5)
    options = {"temperature": 0.7, "top_p": 0.9, "seed": 0, "max_new_tokens": 5}
    drawn = magma.generate(PICTURE, "A picture of", **options, num_return_sequences=2)
    assert texts == [greedy.text, *(answer.text for answer in drawn)]
    assert f"<td>{sum(greedy.log_probs):.2f}</td>" in playground.compared.value


def test_model_text_is_no_markup(playground: Playground, magma: Magma, monkeypatch):
    generate = magma.generate

    def hostile(*arguments, **options):
        answers = generate(*arguments, **options)
        for answer in answers:
            answer.text = "<img src=x onerror=alert(1)>"
        return answers

    monkeypatch.setattr(magma, "generate", hostile)
    playground.compare()
    assert "<img" not in playground.compared.value
    assert "&lt;img" in playground.compared.value


def test_the_picture_chosen_last_is_asked_about(playground: Playground, magma: Magma, rng):
    content = png(rng)
    before = playground.preview.value
    listed = playground.answer()
    playground.upload.value = uploaded("mine.png", content)
    assert playground.preview.value != before
    image = Image.open(io.BytesIO(content))
    options = {"temperature": 0.7, "top_p": 0.9, "seed": 0, "max_new_tokens": 5}
    (expected,) = magma.generate(image, "A picture of", **options)
    assert playground.answer() == expected.text
    assert playground.message.value == ""
    playground.picture.value = "03.jpg"
    playground.picture.value = PICTURE.name
    assert playground.preview.value == before
    assert playground.answer() == listed


@pytest.mark.parametrize(
    "content", [b"", b"<script>", png(np.random.default_rng(0))[:60]], ids=["empty", "text", "cut"]
)
def test_a_bad_upload_gives_one_line(playground: Playground, content):
    playground.upload.value = uploaded("<b>.png", content)
    line = playground.message.value
    assert line.startswith("error: &lt;b&gt;.png: ")
    assert "\n" not in line
    assert playground.answer() == ""
    assert playground.message.value == line
    assert playground.compare() == []
    playground.upload.value = ()
    assert playground.message.value == ""
    assert playground.answer() != ""


def test_a_prompt_that_does_not_fit_gives_one_line(playground: Playground):
    playground.prompt.value = "word " * 200
    assert playground.answer() == ""
    assert "too long" in playground.message.value


def test_buttons_call(playground: Playground):
    (row, *_) = playground.box.children
    buttons = {b.description: b for b in row.children[1].children[-2].children}
    buttons["Answer"].click()
    assert playground.text.value
    assert bytes(playground.phases.value).startswith(b"\x89PNG")
    buttons["Compare"].click()
    assert playground.compared.value


def test_phases_are_those_of_the_last_answer(playground: Playground, trace: Path):
    playground.answer()
    before = read_phases(trace)
    playground.answer()
    rows = {row.name: row for row in phases_since(before, read_phases(trace))}
    assert rows["prefill/decoder"].runs == 2
    assert rows["decode/lm_head"].runs == 4
    assert all(row.ms >= 0 and row.loaded_bytes >= 0 for row in rows.values())


def test_traces_of_a_folder_are_added(tmp_path: Path):
    for name, runs in (("batch_1", 2), ("batch_2", 3)):
        region = {"name": "decode", "runs": runs, "loaded_bytes": 10 * runs, "ms": runs / 2}
        (tmp_path / f"{name}.json").write_text(json.dumps({"regions": [region]}))
    assert read_phases(tmp_path) == {"decode": PhaseRow("decode", 5, 50, 2.5)}
    assert read_phases(tmp_path / "none") == {}


def test_bars_follow_each_other():
    rows = [PhaseRow("a", 1, 0, 2.0), PhaseRow("b", 3, 2048, 5.0)]
    (axes,) = phase_figure(rows).axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(0, 2), (2, 5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "a × 1 (0 B)",
        "b × 3 (2.00 KiB)",
    ]


def test_a_folder_without_pictures_is_refused(magma: Magma, trace: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds no pictures"):
        Playground(magma, trace, tmp_path)
