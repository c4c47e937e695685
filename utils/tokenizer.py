"""The text side of MAGMA: GPT-2's byte-level BPE with the special token ``<|image|>``.

The tokenizer is built from a vocabulary and its merges alone, read from ``vocab.json`` and
``merges.txt`` or from ``tokenizer.json``, so that no other file of a folder changes its behaviour.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.download import hub_file_bytes
from utils.errors import UserError
from utils.files import atomic_file

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

END_OF_TEXT = "<|endoftext|>"
IMAGE_TOKEN = "<|image|>"
HUB_REPOSITORY = "gpt2"
VOCAB_FILES = ("vocab.json", "merges.txt")
WHOLE_FILE = "tokenizer.json"
TOKENIZER_FILES = (*VOCAB_FILES, WHOLE_FILE)
MODEL_MAX_LENGTH = 2048
SMALL_TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "tiny"
SMALL_VOCAB_SIZE = 512
"""Entries of the small tokenizer, ``<|image|>`` included."""

_log = logging.getLogger(__name__)


def load_tokenizer(source: str | Path) -> GPT2Tokenizer:
    """A tokenizer from a folder or from the Hugging Face hub.

    It pads on the right with ``<|endoftext|>``, adds no token before or after a text, and knows
    ``<|image|>`` as its cls token, one above the vocabulary (50257 for GPT-2).

    Args:
        source: a folder with ``vocab.json`` and ``merges.txt``, or with ``tokenizer.json``; or the
            name of a repository on the hub.

    Raises:
        UserError: no such folder or repository, no network, or files that are no byte-level BPE.
    """
    folder = Path(source)
    if has_tokenizer(folder):
        return _from_folder(folder)
    if folder.is_dir():
        raise UserError(
            f"{folder}: no tokenizer in this folder; it needs {' and '.join(VOCAB_FILES)}, or "
            f"{WHOLE_FILE}"
        )
    return _build(*_read_pair(*_download(str(source))))


def tokenizer_for(checkpoint: Path, real_vocab_size: int) -> GPT2Tokenizer:
    """The tokenizer of a model: beside its checkpoint, else the small one or GPT-2's.

    A tokenizer that had to be downloaded is kept beside the checkpoint where that is possible.

    Args:
        checkpoint: the checkpoint's file or folder.
        real_vocab_size: rows of the model's word embedding.

    Raises:
        UserError: as :func:`load_tokenizer`.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if has_tokenizer(folder):
        tokenizer = _from_folder(folder)
    elif real_vocab_size <= SMALL_VOCAB_SIZE:
        tokenizer = _from_folder(SMALL_TOKENIZER)
    else:
        files = _download(HUB_REPOSITORY, folder)
        tokenizer = _build(*_read_pair(*files))
        _keep(files, folder)
    if len(tokenizer) != real_vocab_size:
        _log.warning(
            "the tokenizer has %d entries, the word embedding %d rows",
            len(tokenizer),
            real_vocab_size,
        )
    return tokenizer


def encode(tokenizer: GPT2Tokenizer, text: str) -> list[int]:
    """The ids of a text, nothing added.

    Raises:
        UserError: the text is not valid Unicode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{text[:40]!r} is not valid text: {error.reason}; use UTF-8") from error
    # The tokenizer would warn about lengths that check_prompt refuses in its own words.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    pair = all((folder / name).is_file() for name in VOCAB_FILES)
    return pair or (folder / WHOLE_FILE).is_file()


def _from_folder(folder: Path) -> GPT2Tokenizer:
    vocab_file, merges_file = (folder / name for name in VOCAB_FILES)
    if vocab_file.is_file() and merges_file.is_file():
        return _build(*_read_pair(vocab_file, merges_file))
    return _build(*_read_whole(folder / WHOLE_FILE))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the tokenizer file: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error


def _read_pair(vocab_file: Path, merges_file: Path) -> tuple[Any, list[Any], Path]:
    vocab = _read_json(vocab_file)
    lines = _read_text(merges_file).split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return vocab, merges, vocab_file


def _read_whole(path: Path) -> tuple[Any, list[Any], Path]:
    content = _read_json(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UserError(f"{path}: not a byte-level BPE tokenizer like GPT-2's")
    merges = model.get("merges", [])
    # Older files write a merge as "a b", newer ones as ["a", "b"].
    pairs = [entry.split(" ") if isinstance(entry, str) else entry for entry in merges]
    return model.get("vocab"), pairs, path


def _build(vocab: Any, merges: list[Any], path: Path) -> GPT2Tokenizer:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import GPT2Tokenizer

    if not isinstance(vocab, dict) or END_OF_TEXT not in vocab:
        raise UserError(f"{path}: no vocabulary of GPT-2's kind, {END_OF_TEXT} is not in it")
    missing = sum(letter not in vocab for letter in ByteLevel.alphabet())
    if missing:
        raise UserError(f"{path}: not a byte-level vocabulary, {missing} of 256 bytes are missing")
    try:
        pairs: list[Any] = [tuple(pair) for pair in merges]
        return GPT2Tokenizer(
            vocab=vocab,
            merges=pairs,
            cls_token=IMAGE_TOKEN,
            pad_token=END_OF_TEXT,
            padding_side="right",
            model_max_length=MODEL_MAX_LENGTH,
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"{path}: vocabulary and merges do not fit: {_one_line(error)}") from error


def _download(repository: str, folder: Path | None = None) -> tuple[Path, Path]:
    """Fetch ``vocab.json`` and ``merges.txt`` of a repository, from the local cache if there."""
    from huggingface_hub import constants, hf_hub_download

    def fetch(local: bool) -> tuple[Path, Path]:
        vocab_file, merges_file = (
            Path(hf_hub_download(repository, name, local_files_only=local)) for name in VOCAB_FILES
        )
        return vocab_file, merges_file

    try:
        return fetch(local=True)
    except Exception as error:  # not cached, or no valid name: the attempt below tells
        _log.debug("tokenizer %s is not in the local cache: %s", repository, error)
    try:
        hub_file_bytes(repository, VOCAB_FILES[0])
        return fetch(local=False)
    except Exception as error:  # the hub library raises many kinds; each means "no files"
        where = f"into {folder}" if folder is not None else "into a folder and name that folder"
        raise UserError(
            f"no tokenizer: tried {folder or repository}, the local cache and "
            f"{constants.ENDPOINT}/{repository} ({_one_line(error)}); put "
            f"{' and '.join(VOCAB_FILES)} (or {WHOLE_FILE}) of the hub repository "
            f"{HUB_REPOSITORY} {where}"
        ) from error


def _keep(files: tuple[Path, Path], folder: Path) -> None:
    """Copy downloaded files beside the model, where the next start finds them offline."""
    for source in files:
        target = folder / source.name
        try:
            with atomic_file(target) as file:
                file.write(source.read_bytes())
        except (OSError, UserError) as error:
            _log.info("the tokenizer is not kept beside the model: %s", error)
            return


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
