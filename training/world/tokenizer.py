"""The world's tokenizer: byte-level BPE of GPT-2's class; every word is one token."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.world.captions import CAPTION_START
from training.world.kinds import COUNTS, FACTS, KINDS, PLACE_FACTS, PLACES
from training.world.scenes import OPPOSITE
from utils.files import atomic_file
from utils.tokenizer import END_OF_TEXT, VOCAB_FILES

_OTHER_WORDS = (
    "Q A There The Is Are What How Where is are there something that of the and an it yes no none "
    "one many"
)
_FIRST_WORDS = ("A", "Q", "There")


def words() -> list[str]:
    """Every word of the world's texts, as it stands in them: most after a space."""
    texts = [CAPTION_START, *KINDS, *KINDS.values(), *COUNTS, *PLACES, *PLACES.values()]
    texts += [*OPPOSITE, *FACTS, *PLACE_FACTS, _OTHER_WORDS]
    found = dict.fromkeys(re.findall(r"\w+", " ".join(texts)))
    return [*_FIRST_WORDS, *(f" {word}" for word in found)]


def train_tokenizer() -> Tokenizer:
    """Learn merges until every word is one token; the same words give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than there are merges to learn
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words(), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json and merges.txt; <|endoftext|> is the last entry, as in GPT-2's."""
    tokenizer = train_tokenizer()
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"] | {END_OF_TEXT: tokenizer.get_vocab_size() - 1}
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    contents = (
        json.dumps(ordered, ensure_ascii=False, separators=(",", ":")) + "\n",
        "\n".join(lines),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(VOCAB_FILES, contents, strict=True):
        with atomic_file(folder / name) as file:
            file.write(content.encode())
