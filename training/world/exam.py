"""What the shipped model is examined on: held-out scenes to describe, and balanced questions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from training.world.captions import CAPTION_START, caption, parse_caption
from training.world.kinds import FACTS, PLACE_FACTS
from training.world.questions import (
    TOPICS,
    Question,
    fact_question,
    place_fact_question,
    yes_no,
)
from training.world.scenes import Scene, random_scene


@dataclass(frozen=True)
class Task:
    """One picture and one prompt.

    Attributes:
        scene: what the picture shows.
        picture_seed: seed of `training.world.pictures.draw`.
        prompt: the prompt.
        answer: the right answer; of a caption, one of its wordings.
        topic: "caption", or the topic of the question.
        about: see `Question`.
    """

    scene: Scene
    picture_seed: tuple[int, ...]
    prompt: str
    answer: str
    topic: str = "caption"
    about: str = ""

    @property
    def question(self) -> str:
        """The question without the letters around it; of a caption, its prompt."""
        return self.prompt.removeprefix("Q: ").removesuffix(" A:")

    def is_right(self, text: str) -> bool:
        """Whether a model's text is the right answer; captions are compared by what they say."""
        if self.topic == "caption":
            return parse_caption(text) == self.scene
        return text.strip() == self.answer


def caption_tasks(split: str, count: int, seed: int) -> list[Task]:
    """So many pictures of a split to describe."""
    tasks = []
    for i in range(count):
        rng = np.random.default_rng([seed, 1, i])
        scene = random_scene(rng, split)
        answer = caption(scene).removeprefix(CAPTION_START)
        tasks.append(Task(scene, (seed, 1, i), CAPTION_START, answer))
    return tasks


def fact_tasks(split: str, pairs: int, seed: int) -> list[Task]:
    """For each fact so many pictures of which it is true and as many of which it is not."""
    return [
        _task(_scene_with(fact_question, fact, answer, split, (seed, 2, i, j)), (seed, 2, i, j))
        for i, fact in enumerate(FACTS)
        for j in range(2 * pairs)
        for answer in [yes_no(j % 2 == 0)]
    ]


def place_fact_tasks(split: str, pairs: int, seed: int) -> list[Task]:
    """The same for facts about places."""
    return [
        _task(
            _scene_with(place_fact_question, fact, answer, split, (seed, 3, i, j)), (seed, 3, i, j)
        )
        for i, fact in enumerate(PLACE_FACTS)
        for j in range(2 * pairs)
        for answer in [yes_no(j % 2 == 0)]
    ]


def topic_tasks(topic: str, split: str, count: int, seed: int) -> list[Task]:
    """So many questions of a topic as it makes them."""
    number = list(TOPICS).index(topic)
    tasks: list[Task] = []
    while len(tasks) < count:
        place = (seed, 4, number, len(tasks))
        rng = np.random.default_rng(place)
        question = None
        while question is None:
            scene = random_scene(rng, split)
            question = TOPICS[topic](scene, rng)
        tasks.append(_task((scene, question), place))
    return tasks


def _scene_with(make, about: str, answer: str, split: str, seed: tuple[int, ...]):
    rng = np.random.default_rng(seed)
    while True:
        scene = random_scene(rng, split)
        question = make(scene, about)
        if question.answer == answer:
            return scene, question


def _task(found: tuple[Scene, Question], seed: tuple[int, ...]) -> Task:
    scene, question = found
    return Task(scene, seed, question.prompt, question.answer, question.topic, question.about)


def wilson_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default (E. B. Wilson, 1927)."""
    share, square = right / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    spread = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return centre - spread, centre + spread
