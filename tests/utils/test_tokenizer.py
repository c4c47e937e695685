"""The tokenizer: GPT-2's class with the image token, from a folder, offline."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import utils.tokenizer as module
from utils.errors import UserError
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer, tokenizer_for

TEXTS = [
    "",
    "A picture of",
    "A picture of ",
    "Q: What is this? A:",
    "don't  do\n\tthat",
    "Zürich 🙂 東京",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in module.VOCAB_FILES:
        shutil.copy(SMALL_TOKENIZER / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_args: object, **_kwargs: object) -> str:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(module, "hub_file_bytes", refuse)


def test_special_tokens() -> None:
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    assert len(tokenizer) == module.SMALL_VOCAB_SIZE
    assert tokenizer.cls_token_id == tokenizer.convert_tokens_to_ids("<|image|>") == 511
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 510
    assert tokenizer.encode("<|image|>") == [511]
    assert tokenizer.decode([510, 511], skip_special_tokens=True) == ""


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_added_and_nothing_lost(text: str) -> None:
    tokenizer = load_tokenizer(SMALL_TOKENIZER)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {510, 511}


def test_pads_on_the_right() -> None:
    ids = load_tokenizer(SMALL_TOKENIZER)(["A", "A picture of"], padding=True)["input_ids"]
    assert ids[0][0] == ids[1][0]
    assert set(ids[0][1:]) == {510}


def test_ids_above_the_tokenizer_decode_to_nothing() -> None:
    assert load_tokenizer(SMALL_TOKENIZER).decode([600]) == ""


def test_whole_file_is_the_same_tokenizer(folder: Path, rng: np.random.Generator) -> None:
    pair = load_tokenizer(folder)
    pair.save_pretrained(folder)
    for name in module.VOCAB_FILES:
        (folder / name).unlink(missing_ok=True)
    whole = load_tokenizer(folder)
    assert len(whole) == len(pair)
    for text in [*TEXTS, *("".join(map(chr, rng.integers(32, 1000, 60))) for _ in range(20))]:
        assert whole.encode(text) == pair.encode(text)


def test_older_whole_files_write_merges_as_text(folder: Path) -> None:
    load_tokenizer(folder).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    expected = load_tokenizer(folder).encode(TEXTS[3])
    for name in module.VOCAB_FILES:
        (folder / name).unlink(missing_ok=True)
    assert load_tokenizer(folder).encode(TEXTS[3]) == expected


def test_the_script_makes_the_shipped_files(tmp_path: Path) -> None:
    for name in ("make_tokenizer.py", "tokenizer_text.txt"):
        shutil.copy(SMALL_TOKENIZER / name, tmp_path / name)
    runpy.run_path(str(tmp_path / "make_tokenizer.py"), run_name="__main__")
    for name in module.VOCAB_FILES:
        assert (tmp_path / name).read_bytes() == (SMALL_TOKENIZER / name).read_bytes()


def test_a_model_s_own_tokenizer_comes_first(folder: Path) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    vocab["extra"] = 511
    (folder / "vocab.json").write_text(json.dumps(vocab))
    assert len(tokenizer_for(folder / "model.pt", 513)) == 513
    assert len(tokenizer_for(folder, 513)) == 513


@pytest.mark.usefixtures("_no_network")
def test_a_small_model_needs_no_network(tmp_path: Path) -> None:
    assert len(tokenizer_for(tmp_path / "model.pt", 512)) == 512


@pytest.mark.usefixtures("_no_network")
def test_offline_says_what_was_tried_and_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tokenizer_for(tmp_path / "model.pt", 50258)
    message = str(caught.value)
    assert "\n" not in message
    for fact in (str(tmp_path), "gpt2", "no route to host", "vocab.json", "merges.txt"):
        assert fact in message


@pytest.mark.usefixtures("_no_network")
def test_unknown_hub_name_is_one_line() -> None:
    with pytest.raises(UserError, match="tried someone/something"):
        load_tokenizer("someone/something")


def test_a_downloaded_tokenizer_is_kept_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetch(repository: str, name: str, local_files_only: bool) -> str:
        assert repository == "gpt2"
        if local_files_only:
            raise FileNotFoundError(name)
        return str(SMALL_TOKENIZER / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(module, "hub_file_bytes", lambda repository, name: None)
    tokenizer_for(tmp_path / "model.pt", 50258)
    assert module.has_tokenizer(tmp_path)
    monkeypatch.undo()
    assert len(tokenizer_for(tmp_path / "model.pt", 50258)) == 512


_BROKEN = {
    "vocabulary is no JSON": ("vocab.json", "{", "not a JSON file"),
    "vocabulary is a list": ("vocab.json", "[]", "no vocabulary of GPT-2's kind"),
    "bytes are missing": ("vocab.json", '{"<|endoftext|>": 0}', "bytes are missing"),
    "merge of unknown tokens": ("merges.txt", "#version: 0.2\nqqq zzz\n", "do not fit"),
    "merge of one token": ("merges.txt", "a\n", "do not fit"),
}


@pytest.mark.parametrize("case", _BROKEN)
def test_broken_files_are_one_line(case: str, folder: Path) -> None:
    name, content, message = _BROKEN[case]
    (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(UserError, match="not a byte-level BPE"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_names_the_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt, or tokenizer\.json"):
        load_tokenizer(tmp_path)
