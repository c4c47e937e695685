"""Captions say exactly what a scene is, and can be read back."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.world.captions import MAP_SIDE, caption, parse_caption, statement, word_map
from training.world.kinds import PLACES
from training.world.scenes import Group, Scene, random_scene


def test_every_caption_is_read_back_as_its_scene(rng: np.random.Generator):
    for _ in range(2000):
        scene = random_scene(rng)
        text = caption(scene)
        assert parse_caption(text) == scene
        assert parse_caption(text.removeprefix("A picture of")) == scene


def test_captions_begin_with_the_group_to_the_left_or_above_and_are_read_from_either_side():
    scene = Scene("snow", Group("apple", 1), Group("dog", 3), "left of")
    assert caption(scene) == "A picture of apples left of dogs in snow: one apple, three dogs."
    turned = "A picture of dogs right of apples in snow: three dogs, one apple."
    assert parse_caption(turned) == scene
    assert caption(Scene("sea", Group("fish", 2))) == "A picture of fish at sea: two fish."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A picture of dogs.",
        "A picture of dogs in snow: five dogs.",
        "A picture of dogs in snow: two cats.",
        "A picture of dogs in snow: one dogs.",
        "A picture of dogs in snow: one dog, two cats.",
        "A picture of dogs beside cats in snow: two dogs, one cat.",
        "A picture of dogs left of cats in snow: two dogs.",
        "A picture of dogs in snow: two dogs",
        "A picture of dogs in snow: two dogs. Q",
    ],
)
def test_other_texts_are_no_captions(text: str):
    assert parse_caption(text) is None


def test_a_wrong_count_kind_relation_or_place_is_another_scene():
    right = parse_caption("A picture of dogs left of cats at sea: two dogs, one cat.")
    for wrong in (
        "A picture of dogs left of cats at sea: three dogs, one cat.",
        "A picture of cows left of cats at sea: two cows, one cat.",
        "A picture of dogs right of cats at sea: two dogs, one cat.",
        "A picture of dogs left of cats at night: two dogs, one cat.",
    ):
        assert parse_caption(wrong) not in (None, right)


def test_a_statement_says_the_same():
    scene = Scene("night", Group("bee", 2), Group("bus", 1), "above")
    texts = {statement(scene, np.random.default_rng(seed)) for seed in range(20)}
    assert texts == {
        "There are two bees and a bus at night. The bees are above the bus.",
        "There is a bus and two bees at night. The bees are above the bus.",
    }


def test_a_map_holds_every_thing_where_the_relation_says(rng: np.random.Generator):
    for _ in range(500):
        scene = random_scene(rng)
        words = word_map(scene, rng).split()
        counted = Counter(words)
        assert len(words) == MAP_SIDE**2
        assert counted.pop(scene.place) == MAP_SIDE**2 - sum(g.count for g in scene.groups)
        assert counted == {g.kind: g.count for g in scene.groups}
        if scene.second is None:
            continue
        axis = (
            (lambda i: i % MAP_SIDE) if scene.relation == "left of" else (lambda i: i // MAP_SIDE)
        )
        first, second = (
            [axis(i) for i, word in enumerate(words) if word == group.kind]
            for group in scene.groups
        )
        assert max(first) < min(second)
    assert {"grass", "snow", "sand", "night", "sea"} == PLACES.keys()
