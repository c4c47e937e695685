"""Questions have the right answers, and yes is as frequent as no."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.world.kinds import FACTS
from training.world.questions import TOPICS, Question, fact_question, place_fact_question
from training.world.scenes import Group, Scene, random_scene

BANANAS_AND_DOG = Scene("snow", Group("banana", 2), Group("dog", 1), "left of")


@pytest.mark.parametrize(
    ("fact", "answer"),
    [("can fly", "no"), ("can bark", "yes"), ("is a fruit", "yes"), ("has wheels", "no")],
)
def test_facts_are_asked_of_what_is_there(fact: str, answer: str):
    question = fact_question(BANANAS_AND_DOG, fact)
    assert question.prompt == f"Q: Is there something that {fact}? A:"
    assert question.answer == answer


def test_places_have_facts():
    assert place_fact_question(BANANAS_AND_DOG, "cold").answer == "yes"
    assert place_fact_question(BANANAS_AND_DOG, "dark").answer == "no"


def asked(topic: str, scene: Scene = BANANAS_AND_DOG, count: int = 200) -> dict[str, str]:
    """Questions of a topic that come up for a scene, with their answers."""
    made = [TOPICS[topic](scene, np.random.default_rng(seed)) for seed in range(count)]
    return {q.text: q.answer for q in made if isinstance(q, Question)}


def test_answers_of_every_topic():
    assert asked("count")["How many bananas are there?"] == "two"
    assert asked("count")["How many dogs are there?"] == "one"
    assert "none" in asked("count").values()
    assert asked("what where") == {
        "What is left of the dog?": "two bananas",
        "What is right of the bananas?": "a dog",
    }
    assert asked("relation") == {
        "Are the bananas left of the dog?": "yes",
        "Are the bananas right of the dog?": "no",
        "Is the dog left of the bananas?": "no",
        "Is the dog right of the bananas?": "yes",
    }
    assert asked("place") == {"Where is it?": "in snow"}
    assert asked("which")["What is there that is an animal?"] == "a dog"
    assert asked("exists")["Is there a dog?"] == "yes"
    assert asked("plain fact")["Is a dog something that can bark?"] == "yes"


def test_topics_that_need_two_groups_pass_over_scenes_of_one():
    alone = Scene("sea", Group("whale", 1))
    for topic in ("which", "relation", "what where"):
        assert asked(topic, alone, 5) == {}


def test_each_fact_is_answered_yes_about_as_often_as_no():
    rng = np.random.default_rng(11)
    counts: Counter[tuple[str, str]] = Counter()
    for _ in range(3000):
        question = TOPICS["fact"](random_scene(rng), rng)
        assert question is not None
        counts[question.about, question.answer] += 1
    for fact in FACTS:
        yes, no = counts[fact, "yes"], counts[fact, "no"]
        assert 0.35 < yes / (yes + no) < 0.65
