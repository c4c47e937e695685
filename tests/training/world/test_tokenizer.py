"""The world's tokenizer: every word one token, and the shipped files are what the code makes."""

from __future__ import annotations

from pathlib import Path

from training.world.tokenizer import words, write_tokenizer
from utils.tokenizer import VOCAB_FILES, load_tokenizer


def test_the_shipped_tokenizer_is_made_again(tmp_path: Path):
    write_tokenizer(tmp_path)
    for name in VOCAB_FILES:
        assert (tmp_path / name).read_bytes() == (Path("models/world") / name).read_bytes()


def test_every_word_is_one_token():
    tokenizer = load_tokenizer("models/world")
    assert [word for word in words() if len(tokenizer.encode(word)) != 1] == []
