"""Prompts and answers of an evaluation against the PyTorch model, and the file that keeps them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.parsing import load_preset
from execution.evaluation import (
    TASKS,
    Examples,
    Result,
    ResultsFile,
    Sample,
    answer_all,
    ask,
    read_samples,
)
from execution.magma import Magma
from tests.datasets import captions, question, write_dataset
from tests.reference.magma import ReferenceMagma
from tests.reference.pictures import read_picture
from training import sources
from training.convert_dataset import convert_dataset
from utils.checkpoint_writer import write_random_checkpoint
from utils.dataset_files import BadSamples
from utils.errors import UserError

CAPTIONS, VQA = TASKS["captions"], TASKS["vqa"]
SEED = 11
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_random_checkpoint(path, load_preset("tiny"), seed=SEED, dtype="float32")
    return path


@pytest.fixture(scope="module")
def magma(checkpoint: Path) -> Iterator[Magma]:
    with Magma.from_pretrained(checkpoint, config="tiny") as magma:
        yield magma


@pytest.fixture
def bad() -> BadSamples:
    return BadSamples(skip=False)


@pytest.fixture
def train(tmp_path: Path, rng, bad) -> list[Sample]:
    """Eight samples with one-letter captions."""
    root = write_dataset(tmp_path / "train", captions(*"abcdefgh"), rng)
    return read_samples(root, CAPTIONS, CAPTIONS.prompt, bad)


@pytest.fixture
def test(tmp_path: Path, rng, bad) -> list[Sample]:
    root = write_dataset(tmp_path / "test", captions(*"pqrst"), rng)
    return read_samples(root, CAPTIONS, CAPTIONS.prompt, bad)


def greedy(reference: ReferenceMagma, tokenizer, pieces: list[Path | str], stop: str) -> str:
    """The PyTorch model's answer to pictures and texts by turns, a whole run for each token."""
    rows = [
        reference.embed_text(torch.tensor([tokenizer.encode(piece)]))
        if isinstance(piece, str)
        else reference.embed_image(read_picture(piece, 48))
        for piece in pieces
    ]
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            new = [reference.embed_text(torch.tensor([ids]))] if ids else []
            logits = reference.lm(inputs_embeds=torch.cat([*rows, *new], dim=1)).logits[0, -1]
            ids.append(int(logits[: len(tokenizer)].argmax()))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return text.split(stop)[0].strip()


def answers(magma, samples, examples, bad, batch=8, task=CAPTIONS) -> list[Result]:
    batches = answer_all(magma, task, samples, examples, bad, batch, NEW_TOKENS)
    return [result for batch in batches for result in batch]


@pytest.mark.parametrize("shots", [0, 2])
def test_answers_are_those_of_the_reference_to_examples_by_turns(
    shots, magma, checkpoint, train, test, bad
):
    reference = ReferenceMagma.from_checkpoint(checkpoint, load_preset("tiny"))
    found = answers(magma, test, Examples(train, shots, 0, bad), bad, batch=3)
    by_name = {sample.name: sample for sample in train}
    assert [result.name for result in found] == [sample.name for sample in test]
    for result, sample in zip(found, test, strict=True):
        pieces: list[Path | str] = []
        for name in result.examples:
            pieces += [by_name[name].picture, f"A picture of {by_name[name].references[0]}"]
        pieces += [sample.picture, "A picture of"]
        assert len(pieces) == 2 + 2 * shots
        assert result.prediction == greedy(reference, magma.tokenizer, pieces, "\n")
    assert len({result.prediction for result in found}) > 1


def test_pieces_of_a_prompt_with_examples(tmp_path, rng, bad):
    records = [
        question("What?", "cat", "dog", "dog"),
        question("Who?", "a man"),
        question("U?", "x"),
    ]
    root = write_dataset(tmp_path / "data", records, rng)
    first, second, last = read_samples(root, VQA, VQA.prompt, bad)
    asked = ask(last, Examples([first, second], 2, 0, bad))
    texts = {first.name: "Q: What? A: dog", second.name: "Q: Who? A: a man"}
    names = [example.name for example in asked.examples]
    assert sorted(names) == sorted(texts)
    assert asked.pieces[1::2] == [*(texts[name] for name in names), "Q: U? A:"]
    for piece, sample in zip(asked.pieces[::2], [*asked.examples, last], strict=True):
        assert np.array_equal(np.asarray(piece), np.asarray(Image.open(sample.picture)))


def test_the_seed_alone_decides_the_examples(train, test, bad):
    def drawn(seed: int, samples: list[Sample]) -> dict[str, list[str]]:
        examples = Examples(train, 3, seed, bad)
        return {s.name: [e.name for e in ask(s, examples).examples] for s in samples}

    first = drawn(0, test)
    assert drawn(0, test[::-1]) == first  # nor does what was drawn before
    assert drawn(1, test) != first
    assert len({tuple(names) for names in first.values()}) > 1
    assert all(len(set(names)) == 3 for names in first.values())


def test_no_example_shows_the_sample_s_own_picture(train, bad):
    shutil.copy(train[0].picture, train[5].picture)  # under two names
    drawn = {
        e.name for seed in range(9) for e in ask(train[0], Examples(train, 6, seed, bad)).examples
    }
    assert drawn == {sample.name for sample in train} - {train[0].name, train[5].name}
    with pytest.raises(UserError, match="has 6 possible examples in the train split of 8, but 7"):
        ask(train[0], Examples(train, 7, 0, bad))


def test_unreadable_examples_are_drawn_again_on_demand(train, test, bad):
    train[3].picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^example .*0/3\.json: .*3\.png: is no picture"):
        ask(test[0], Examples(train, 8, 0, bad))
    skipping = BadSamples(skip=True)
    examples = Examples(train, 7, 0, skipping)
    for sample in test:
        assert train[3] not in ask(sample, examples).examples
    assert len(skipping.lines) == 1


def test_all_answers_of_ten_annotators_survive_conversion(tmp_path, rng, bad):
    given = [{"answer": text, "answer_id": i} for i, text in enumerate(["yes"] * 7 + ["no"] * 3)]
    questions = {"questions": [{"question_id": 1, "image_id": 5, "question": "Is it?"}]}
    annotations = {"annotations": [{"question_id": 1, "answers": given}]}
    pictures = write_dataset(tmp_path / "any", captions("x"), rng) / "images/0"
    (pictures / "0.png").rename(pictures / "000000000005.jpg")
    for name, content in (("q.json", questions), ("a.json", annotations)):
        (tmp_path / name).write_text(json.dumps(content))
    entries = sources.vqa(tmp_path / "q.json", tmp_path / "a.json", pictures, bad.add)
    convert_dataset(tmp_path / "out", entries)
    (sample,) = read_samples(tmp_path / "out", VQA, VQA.prompt, bad)
    assert sample.prompt == "Q: Is it? A:"
    assert sample.references == ["yes"] * 7 + ["no"] * 3
    assert sample.answer == "yes"


def test_references_are_compared_without_the_prompt_that_they_begin_with(tmp_path, rng, bad):
    record = {"captions": ["A picture of a cat.", "A dog", "..."]}
    root = write_dataset(tmp_path / "data", [record], rng)
    (sample,) = read_samples(root, CAPTIONS, CAPTIONS.prompt, bad)
    assert sample.references == ["a cat.", "A dog"]


BAD_RECORDS = [
    (CAPTIONS, {"captions": ["..."]}, "has a word"),
    (CAPTIONS, {"captions": ["a \ud800 b"]}, "not valid"),
    (CAPTIONS, {"captions": "a cat"}, 'no "captions"'),
    (CAPTIONS, {"captions": ["a"], "image_path": "a\0b"}, "is missing"),
    (VQA, {"captions": ["a"]}, 'no "question"'),
    (VQA, {"captions": ["a"], "metadata": ["question"]}, 'no "question"'),
    (VQA, {"captions": ["a"], "metadata": {"question": " ", "answers": ["x"]}}, 'no "question"'),
    (VQA, {"captions": ["a"], "metadata": {"question": "q", "answers": []}}, 'no "answers"'),
    (VQA, {"captions": ["a"], "metadata": {"question": "q", "answers": "yes"}}, 'no "answers"'),
    (VQA, {"captions": ["a"], "metadata": {"question": "q", "answers": [1]}}, "is no text"),
    (VQA, {"captions": ["a"], "metadata": {"question": "q", "answers": ["\udfff"]}}, "not valid"),
]


@pytest.mark.parametrize(("task", "record", "message"), BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_bad_records_are_named(task, record, message, tmp_path, rng, bad):
    root = write_dataset(tmp_path / "data", [question("Q", "yes"), record], rng)
    with pytest.raises(UserError, match=r"1\.json") as caught:
        read_samples(root, task, task.prompt, bad)
    assert message in str(caught.value)
    skipping = BadSamples(skip=True)
    assert len(read_samples(root, task, task.prompt, skipping)) == 1
    assert message in skipping.lines[0]
    (root / "image_data/0/0.json").unlink()
    with pytest.raises(UserError, match="all 1 samples are bad; nothing is left"):
        read_samples(root, task, task.prompt, skipping)


def test_a_question_is_no_template(tmp_path, rng, bad):
    root = write_dataset(tmp_path / "data", [question("{0} {question} {x!r}?", "yes")], rng)
    (sample,) = read_samples(root, VQA, VQA.prompt, bad)
    assert sample.prompt == "Q: {0} {question} {x!r}? A:"


def test_samples_that_cannot_be_asked_are_left_out_and_named(magma, train, test):
    test[1].picture.write_bytes(b"no picture")
    test[2] = Sample(**(vars(test[2]) | {"prompt": "long " * 100}))
    Image.new("RGB", (1, 60_000)).save(test[3].picture)
    skipping = BadSamples(skip=True)
    found = answers(magma, test, Examples(train, 0, 0, skipping), skipping)
    assert [result.name for result in found] == [test[0].name, test[4].name]
    for name, reason in (("1.json", "is no picture"), ("2.json", "too long"), ("3.json", "narrow")):
        assert any(name in line and reason in line for line in skipping.lines)
    strict = BadSamples(skip=False)
    with pytest.raises(UserError, match="tokens too long"):
        answers(magma, test[2:3], Examples(train, 0, 0, strict), strict)


RESULT = Result("image_data/0/1.json", "A\n", ["x"], "\u2028 \ud800", ["r"])


def test_results_are_read_back_and_half_a_line_is_dropped(tmp_path: Path):
    path, settings = tmp_path / "results.jsonl", {"shots": 0}
    ResultsFile(path, settings).add([RESULT])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"name": "image_')
    file = ResultsFile(path, settings)
    assert file.results == {RESULT.name: RESULT}
    assert path.read_bytes() == whole
    for cut in range(len(whole)):  # wherever a kill may have stopped the writing
        path.write_bytes(whole[:cut])
        ResultsFile(path, settings).add([RESULT])
        assert path.read_bytes() == whole


def test_a_run_without_answers_binds_no_later_one(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    ResultsFile(path, {"shots": 0}).add([])
    file = ResultsFile(path, {"shots": 1})
    file.add([])
    file.add([RESULT])
    assert ResultsFile(path, {"shots": 1}).results == {RESULT.name: RESULT}
    with pytest.raises(UserError, match="was made with shots 1"):
        ResultsFile(path, {"shots": 0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", "is no file of results"),
        (b"[1]\n", "is no file of results"),
        (b"\xff\n", "is no file of results"),
        (
            b'{"settings": {"shots": 1}}\n{"name": "a"}\n',
            "was made with shots 1, now it is 0; name another",
        ),
        (b'{"settings": {"shots": 0}}\n{"name": 1}\n', "line 2 is no result"),
        (b'{"settings": {"shots": 0}}\n' + b"[" * 100_000 + b"\n", "line 2 is no result"),
    ],
)
def test_other_files_are_not_gone_on_with(tmp_path: Path, content, message):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        ResultsFile(path, {"shots": 0})
    assert path.read_bytes() == content
