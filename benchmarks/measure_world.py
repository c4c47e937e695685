"""What the shipped model gets right, through the phases, greedily: the figures of its model card.

    python -m benchmarks.measure_world

Pictures are of scenes that no training saw. Writes figures.json and figures.md beside the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm
from transformers import GPT2Tokenizer

from config.config import MagmaConfig
from config.parsing import load_preset
from execution.generate import generate
from execution.runs import MagmaSession
from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from training.world.captions import CAPTION_START
from training.world.exam import (
    Task,
    caption_tasks,
    fact_tasks,
    place_fact_tasks,
    topic_tasks,
    wilson_interval,
)
from training.world.pictures import draw
from utils.checkpoint import open_checkpoint
from utils.files import atomic_file
from utils.images import preprocess
from utils.program import run_program
from utils.sampling import Sampling
from utils.tokenizer import tokenizer_for

PRESET = "world"
MODEL = Path(__file__).parents[1] / "models" / PRESET
SEED = 2026
PICTURE_SIDE = 256
"""Pixels of the pictures; preprocessing halves them."""

_CAPTION_TOKENS = 20
_ANSWER_TOKENS = 5
_TOPICS = ("which", "exists", "count", "relation", "what where", "place")


@dataclass(frozen=True)
class Figure:
    """How much of one kind of tasks was right.

    Attributes:
        name: what was asked.
        right: tasks answered right.
        total: tasks.
    """

    name: str
    right: int
    total: int

    @property
    def row(self) -> str:
        """Share and its 95 % interval as a row of a table."""
        low, high = wilson_interval(self.right, self.total)
        share = f"{self.right / self.total:.1%}"
        return f"| {self.name} | {share} | {low:.1%} to {high:.1%} | {self.total} |"


class Examinee:
    """The shipped model as a session that answers tasks in batches."""

    def __init__(self, config: MagmaConfig, batch: int, checkpoint: Path) -> None:
        """Builds the session of a preset's configuration for so many sequences at a time."""
        config = config.with_batch(batch)
        self._config = config
        self._tokenizer: GPT2Tokenizer = tokenizer_for(
            checkpoint, config.transformer.embedding.real_vocab_size
        )
        self._session: MagmaSession = inference(config, scheme="cached")
        load_weights(self._session, model_weights(config, open_checkpoint(checkpoint, config)))
        self._session.__enter__()

    def answer(self, tasks: Sequence[Task], tokens: int, blind: bool = False) -> list[str]:
        """The model's texts: the most probable tokens, or what it says to a picture of zeros."""
        batch = self._config.batch
        texts: list[str] = []
        for start in tqdm(range(0, len(tasks), batch), "answering", leave=False, disable=None):
            chunk = list(tasks[start : start + batch])
            filled = chunk + [chunk[-1]] * (batch - len(chunk))
            texts += self._answer_batch(filled, tokens, blind)[: len(chunk)]
        return texts

    def _answer_batch(self, tasks: Sequence[Task], tokens: int, blind: bool) -> list[str]:
        pixels = np.concatenate([self._pixels(task) for task in tasks])
        prompts = [self._tokenizer.encode(task.prompt) for task in tasks]
        results = generate(
            self._session,
            self._config,
            np.zeros_like(pixels) if blind else pixels,
            prompts,
            Sampling(0.0, 0, 0.0, 0),
            tokens,
            self._tokenizer.eos_token_id,
        )
        return [
            str(self._tokenizer.decode(result.generated_ids, skip_special_tokens=True))
            for result in results
        ]

    def _pixels(self, task: Task) -> npt.NDArray[np.float32]:
        picture = draw(task.scene, np.random.default_rng(task.picture_seed), PICTURE_SIDE)
        return preprocess(Image.fromarray(picture), self._config.visual.image_resolution)


def after_caption(examinee: Examinee, tasks: Sequence[Task]) -> list[Task]:
    """The tasks with the model's own caption of the picture before the question."""
    captions = examinee.answer(
        [replace(task, prompt=CAPTION_START, topic="caption") for task in tasks], _CAPTION_TOKENS
    )
    return [
        replace(task, prompt=f"{CAPTION_START}{caption} {task.prompt}")
        for task, caption in zip(tasks, captions, strict=True)
    ]


def measure(examinee: Examinee, share: float = 1.0) -> list[Figure]:
    """Every figure of the model card.

    Args:
        examinee: the model.
        share: of the tasks of each kind to do.
    """
    figures = []

    def take(name: str, tasks: Sequence[Task], tokens: int, blind: bool = False) -> None:
        texts = examinee.answer(tasks, tokens, blind)
        right = sum(task.is_right(text) for task, text in zip(tasks, texts, strict=True))
        figures.append(Figure(name, right, len(tasks)))

    count = round(600 * share)
    captions = caption_tasks("held_out", count, SEED)
    facts = fact_tasks("held_out", max(1, round(15 * share)), SEED)
    places = place_fact_tasks("held_out", max(1, round(50 * share)), SEED)
    combined = "held_out_combinations"
    take("caption, held-out scenes", captions, _CAPTION_TOKENS)
    take("caption, held-out combinations", caption_tasks(combined, count, SEED), _CAPTION_TOKENS)
    take("caption, blind", captions, _CAPTION_TOKENS, blind=True)
    take("fact, yes or no", facts, _ANSWER_TOKENS)
    take(
        "fact, yes or no, after the model's own caption",
        after_caption(examinee, facts),
        _ANSWER_TOKENS,
    )
    take("fact, yes or no, blind", facts, _ANSWER_TOKENS, blind=True)
    take("fact about the place, yes or no", places, _ANSWER_TOKENS)
    take("fact about the place, blind", places, _ANSWER_TOKENS, blind=True)
    for topic in _TOPICS:
        take(f"{topic}", topic_tasks(topic, "held_out", round(300 * share), SEED), _ANSWER_TOKENS)
    return figures


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    head = ["| asked | right | 95 % interval | tasks |", "|---|---|---|---|"]
    return "\n".join([*head, *(figure.row for figure in figures)]) + "\n"


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=MODEL, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=25, help="pictures at a time")
    parser.add_argument("--share", type=float, default=1.0, help="of the tasks to do")
    options = parser.parse_args(argv)
    figures = measure(
        Examinee(load_preset(PRESET), options.batch, options.checkpoint), options.share
    )
    print(table(figures), end="")
    if options.share == 1.0:
        values = [{"name": f.name, "right": f.right, "total": f.total} for f in figures]
        for name, text in (
            ("figures.json", json.dumps(values, indent=1) + "\n"),
            ("figures.md", table(figures)),
        ):
            with atomic_file(options.checkpoint / name) as file:
                file.write(text.encode())


if __name__ == "__main__":
    sys.exit(run_program(lambda: _run(sys.argv[1:])))
