"""Scenes: one group of things, or two and how they stand to each other, in a place.

A scene is what a caption says, not a picture: the same scene has endless pictures. Splits are made
of scenes, so no picture of a held-out scene, and no sentence about it, is ever trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.world.kinds import COUNTS, KINDS, PLACES

OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
"""Every relation, and the one that says the same from the other side."""

CANONICAL = ("left of", "above")
"""The relations that a :class:`Scene` itself uses."""

SPLITS = ("train", "held_out", "held_out_combinations")

_HELD_OUT_SCENES = 10  # one scene in so many
_HELD_OUT_COMBINATIONS = 12  # one combination in so many
_SINGLE_GROUPS = 0.15  # share of scenes with one group


@dataclass(frozen=True)
class Group:
    """Some things of one kind.

    Attributes:
        kind: key of KINDS.
        count: 1 to 4.
    """

    kind: str
    count: int


@dataclass(frozen=True)
class Scene:
    """What there is to see.

    Attributes:
        place: key of PLACES.
        first: the only group; or the one to the left of or above the second.
        second: the other group, of another kind; None if there is only one.
        relation: how the first stands to the second, one of CANONICAL; None if there is only one.
    """

    place: str
    first: Group
    second: Group | None = None
    relation: str | None = None

    @classmethod
    def of(cls, place: str, first: Group, second: Group, relation: str) -> Scene:
        """The scene in which ``first`` stands in any ``relation`` to ``second``."""
        if relation in CANONICAL:
            return cls(place, first, second, relation)
        return cls(place, second, first, OPPOSITE[relation])

    @property
    def groups(self) -> tuple[Group, ...]:
        """The one or two groups."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that are there."""
        return frozenset(group.kind for group in self.groups)

    def combinations(self) -> Iterator[tuple[str, int, str]]:
        """(kind, count, relation seen from it) of each group; relation "alone" for a single one."""
        if self.second is None or self.relation is None:
            yield self.first.kind, self.first.count, "alone"
        else:
            yield self.first.kind, self.first.count, self.relation
            yield self.second.kind, self.second.count, OPPOSITE[self.relation]


def is_held_out_combination(kind: str, count: int, relation: str) -> bool:
    """Whether no training scene has so many of the kind in this relation to anything."""
    return _hash(f"{kind} {count} {relation}") % _HELD_OUT_COMBINATIONS == 0


def split_of(scene: Scene) -> str:
    """The split that a scene belongs to, one of SPLITS."""
    if any(is_held_out_combination(*combination) for combination in scene.combinations()):
        return "held_out_combinations"
    return "held_out" if _hash(repr(scene)) % _HELD_OUT_SCENES == 0 else "train"


def random_scene(rng: np.random.Generator, split: str | None = None) -> Scene:
    """A random scene.

    Args:
        rng: source of randomness.
        split: one of SPLITS to draw from; None for any.
    """
    names, places = list(KINDS), list(PLACES)
    while True:
        place = places[rng.integers(len(places))]
        first, second = (names[i] for i in rng.choice(len(names), 2, replace=False))
        groups = [Group(kind, int(rng.integers(len(COUNTS))) + 1) for kind in (first, second)]
        if rng.random() < _SINGLE_GROUPS:
            scene = Scene(place, groups[0])
        else:
            relation = CANONICAL[rng.integers(len(CANONICAL))]
            scene = Scene(place, groups[0], groups[1], relation)
        if split is None or split_of(scene) == split:
            return scene


def _hash(text: str) -> int:
    # Python's own hash differs from run to run.
    return zlib.crc32(text.encode())
