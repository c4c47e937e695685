"""Scenes: deterministic, in disjoint splits, with some combinations held out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from training.world.kinds import COUNTS, FACTS, KINDS, PLACE_FACTS, PLACES
from training.world.scenes import (
    CANONICAL,
    OPPOSITE,
    SPLITS,
    Group,
    Scene,
    is_held_out_combination,
    random_scene,
    split_of,
)


def scenes(rng: np.random.Generator, split: str | None, count: int = 400) -> list[Scene]:
    """So many random scenes of a split."""
    return [random_scene(rng, split) for _ in range(count)]


def test_the_same_seed_gives_the_same_scenes():
    first, second = (scenes(np.random.default_rng(5), None, 50) for _ in range(2))
    assert first == second
    assert first != scenes(np.random.default_rng(6), None, 50)


def test_splits_share_no_scene(rng: np.random.Generator):
    drawn = {split: set(scenes(rng, split)) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not drawn[one] & drawn[other]


def test_a_scene_is_in_one_split_whichever_group_is_named_first(rng: np.random.Generator):
    for scene in scenes(rng, None):
        if scene.second is not None and scene.relation is not None:
            turned = Scene.of(scene.place, scene.second, scene.first, OPPOSITE[scene.relation])
            assert turned == scene
            assert split_of(turned) == split_of(scene)


def test_training_has_no_held_out_combination(rng: np.random.Generator):
    for split, expected in (("train", False), ("held_out", False), ("held_out_combinations", True)):
        for scene in scenes(rng, split):
            found = any(is_held_out_combination(*c) for c in scene.combinations())
            assert found is expected


def test_some_combinations_are_held_out_but_every_kind_count_and_relation_is_trained():
    relations = (*OPPOSITE, "alone")
    every = list(itertools.product(KINDS, range(1, len(COUNTS) + 1), relations))
    held_out = {c for c in every if is_held_out_combination(*c)}
    assert 0.05 < len(held_out) / len(every) < 0.15
    for parts in ((0, 1), (1, 2), (0, 2)):
        trained = {tuple(c[i] for i in parts) for c in every if c not in held_out}
        assert trained == {tuple(c[i] for i in parts) for c in every}


def test_combinations_name_the_relation_from_each_group():
    scene = Scene.of("snow", Group("dog", 2), Group("key", 1), "below")
    assert scene == Scene("snow", Group("key", 1), Group("dog", 2), "above")
    assert set(scene.combinations()) == {("dog", 2, "below"), ("key", 1, "above")}
    assert list(Scene("snow", Group("dog", 2)).combinations()) == [("dog", 2, "alone")]


def test_random_scenes_are_within_the_world(rng: np.random.Generator):
    drawn = scenes(rng, None, 2000)
    assert {kind for scene in drawn for kind in scene.kinds} == KINDS.keys()
    assert {scene.place for scene in drawn} == PLACES.keys()
    assert {scene.relation for scene in drawn} == {None, *CANONICAL}
    assert {g.count for scene in drawn for g in scene.groups} == {1, 2, 3, 4}
    assert all(len(scene.kinds) == len(scene.groups) for scene in drawn)


@pytest.mark.parametrize("fact", FACTS)
def test_facts_are_true_of_some_kinds_and_not_of_all(fact: str):
    assert KINDS.keys() > FACTS[fact]


def test_facts_about_places_name_places():
    assert PLACES.keys() >= set(PLACE_FACTS.values())
