"""Questions about scenes with their answers, and facts asked by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.world.captions import group_words, noun, sides, the_words
from training.world.kinds import COUNTS, FACTS, KINDS, PLACE_FACTS, PLACES
from training.world.scenes import OPPOSITE, Scene


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        topic: key of TOPICS.
        about: what it asks for within the topic: a fact, a kind, ...
        text: the question.
        answer: its one right answer.
    """

    topic: str
    about: str
    text: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a model is given: "Q: Is there a dog? A:"."""
        return f"Q: {self.text} A:"


def yes_no(answer: bool) -> str:
    """The word for a truth value."""
    return "yes" if answer else "no"


def fact_question(scene: Scene, fact: str) -> Question:
    """Whether something in the scene has a property that no picture shows."""
    text = f"Is there something that {fact}?"
    return Question("fact", fact, text, yes_no(bool(FACTS[fact] & scene.kinds)))


def place_fact_question(scene: Scene, property_: str) -> Question:
    """Whether the place of the scene has a property ("Is it cold there?")."""
    answer = yes_no(PLACE_FACTS[property_] == scene.place)
    return Question("place fact", property_, f"Is it {property_} there?", answer)


def _balanced(rng: np.random.Generator, questions: list[Question], rates: list[float]) -> Question:
    """One of many yes-no questions, rare answers more often, so that each is as often yes as no.

    Args:
        rng: source of randomness.
        questions: what to choose from.
        rates: how often each is answered yes in the world at large.
    """
    chances = [r if q.answer == "yes" else 1 - r for q, r in zip(questions, rates, strict=True)]
    weights = 1 / np.array(chances)
    return questions[rng.choice(len(questions), p=weights / weights.sum())]


# About 1.85 groups of different kinds a scene.
_RATES = [1 - (1 - len(kinds) / len(KINDS)) ** 1.85 for kinds in FACTS.values()]


def _fact(scene: Scene, rng: np.random.Generator) -> Question:
    return _balanced(rng, [fact_question(scene, fact) for fact in FACTS], _RATES)


def _place_fact(scene: Scene, rng: np.random.Generator) -> Question:
    questions = [place_fact_question(scene, name) for name in PLACE_FACTS]
    return _balanced(rng, questions, [1 / len(PLACES)] * len(questions))


def _which(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of two groups has a property that the other lacks."""
    if scene.second is None:
        return None
    fits = [
        (fact, group)
        for fact, kinds in FACTS.items()
        for group, other in ((scene.first, scene.second), (scene.second, scene.first))
        if group.kind in kinds and other.kind not in kinds
    ]
    if not fits:
        return None
    fact, group = fits[rng.integers(len(fits))]
    return Question("which", fact, f"What is there that {fact}?", group_words(group))


def _some_kind(scene: Scene, rng: np.random.Generator) -> str:
    """A kind of the scene or, as often, one that is not there."""
    inside = sorted(scene.kinds)
    outside = [kind for kind in KINDS if kind not in scene.kinds]
    kinds = inside if rng.random() < 0.5 else outside
    return kinds[rng.integers(len(kinds))]


def _exists(scene: Scene, rng: np.random.Generator) -> Question:
    kind = _some_kind(scene, rng)
    article = "an" if kind[0] in "aeiou" else "a"
    return Question("exists", kind, f"Is there {article} {kind}?", yes_no(kind in scene.kinds))


def _how_many(scene: Scene, rng: np.random.Generator) -> Question:
    counts = {group.kind: group.count for group in scene.groups}
    absent = rng.random() < 0.15
    kind = _some_kind(scene, rng) if absent else sorted(counts)[rng.integers(len(counts))]
    words = ("none", "one", *COUNTS[1:])
    return Question("count", kind, f"How many {KINDS[kind]} are there?", words[counts.get(kind, 0)])


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.second is None:
        return None
    one, relation, other = sides(scene, rng)
    asked = relation if rng.random() < 0.5 else OPPOSITE[relation]
    verb = "Is" if one.count == 1 else "Are"
    text = f"{verb} {the_words(one)} {asked} {the_words(other)}?"
    return Question("relation", asked, text, yes_no(asked == relation))


def _what_where(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.second is None:
        return None
    one, relation, other = sides(scene, rng)
    return Question(
        "what where", relation, f"What is {relation} {the_words(other)}?", group_words(one)
    )


def _where(scene: Scene, rng: np.random.Generator) -> Question:
    return Question("place", scene.place, "Where is it?", PLACES[scene.place])


def plain_fact(scene: Scene, rng: np.random.Generator) -> Question:
    """A fact asked of a kind by itself, whatever the scene."""
    fact = list(FACTS)[rng.integers(len(FACTS))]
    kinds = sorted(FACTS[fact] if rng.random() < 0.5 else KINDS.keys() - FACTS[fact])
    kind = kinds[rng.integers(len(kinds))]
    article = "an" if kind[0] in "aeiou" else "a"
    text = f"Is {article} {noun(kind, 1)} something that {fact}?"
    return Question("plain fact", fact, text, yes_no(kind in FACTS[fact]))


TOPICS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "fact": _fact,
    "place fact": _place_fact,
    "which": _which,
    "exists": _exists,
    "count": _how_many,
    "relation": _relation,
    "what where": _what_where,
    "place": _where,
    "plain fact": plain_fact,
}
"""Kinds of questions: each makes one about a scene, or none if the scene has too few groups."""
