"""Make the small tokenizer of this folder: byte-level BPE like GPT-2's, 511 entries.

    python models/tiny/make_tokenizer.py

trains on tokenizer_text.txt and writes vocab.json and merges.txt. As in GPT-2, <|endoftext|> is the
last entry of the vocabulary (510), so that <|image|>, which MAGMA adds, becomes id 511 of 512.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
VOCAB_SIZE = 511
END_OF_TEXT = "<|endoftext|>"


def train() -> Tokenizer:
    """Learn the merges; the same text gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(HERE / "tokenizer_text.txt")], trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"{tokenizer.get_vocab_size()} entries, expected {VOCAB_SIZE}: more text")
    return tokenizer


def main() -> None:
    """Write vocab.json and merges.txt beside this script."""
    import json

    tokenizer = train()
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"] | {END_OF_TEXT: VOCAB_SIZE - 1}
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")) + "\n"
    (HERE / "vocab.json").write_text(text, encoding="utf-8")
    lines = [" ".join(merge) for merge in model["merges"]]
    (HERE / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
