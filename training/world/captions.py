"""Scenes as text: captions, other ways to describe, and the way back."""

from __future__ import annotations

import re

import numpy as np

from training.world.kinds import COUNTS, KINDS, PLACES
from training.world.scenes import OPPOSITE, Group, Scene

CAPTION_START = "A picture of"

_SINGULAR = {word: kind for kind, plural in KINDS.items() for word in (kind, plural)}
_PLACE_OF = {words: place for place, words in PLACES.items()}
_GROUP = rf"(an|{'|'.join(COUNTS)}) ({'|'.join(_SINGULAR)})"
_CAPTION = re.compile(
    rf"(?:{CAPTION_START})? ?{_GROUP}(?: ({'|'.join(OPPOSITE)}) {_GROUP})?"
    rf" ({'|'.join(_PLACE_OF)})\."
)


def noun(kind: str, count: int) -> str:
    """The word for so many of a kind."""
    return kind if count == 1 else KINDS[kind]


def group_words(group: Group) -> str:
    """ "a dog", "an apple", "two bananas"."""
    article = "an" if group.count == 1 and group.kind[0] in "aeiou" else COUNTS[group.count - 1]
    return f"{article} {noun(group.kind, group.count)}"


def the_words(group: Group) -> str:
    """ "the dog", "the bananas"."""
    return f"the {noun(group.kind, group.count)}"


def sides(scene: Scene, rng: np.random.Generator) -> tuple[Group, str, Group]:
    """Both groups of a scene of two and their relation, from a random side."""
    assert scene.second is not None
    assert scene.relation is not None
    if rng.random() < 0.5:
        return scene.first, scene.relation, scene.second
    return scene.second, OPPOSITE[scene.relation], scene.first


def caption(scene: Scene) -> str:
    """A sentence such as "A picture of two bananas left of a dog in snow.".

    The group to the left or above comes first; only questions look from the other side.
    """
    words = group_words(scene.first)
    if scene.second is not None:
        words = f"{words} {scene.relation} {group_words(scene.second)}"
    return f"{CAPTION_START} {words} {PLACES[scene.place]}."


def parse_caption(text: str) -> Scene | None:
    """The scene that a caption describes; None if the text is no caption.

    Args:
        text: a caption, with or without its first words, "A picture of".
    """
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        return None
    count, word, relation, other_count, other_word, place = match.groups()
    first = _group(count, word)
    if relation is None:
        return Scene(_PLACE_OF[place], first)
    return Scene.of(_PLACE_OF[place], first, _group(other_count, other_word), relation)


def _group(count: str, word: str) -> Group:
    return Group(_SINGULAR[word], COUNTS.index("a" if count == "an" else count) + 1)


def statement(scene: Scene, rng: np.random.Generator) -> str:
    """Two sentences that say what a caption says, the groups named in either order at first."""
    if scene.second is None:
        return f"{_there(scene.first)} {group_words(scene.first)} {PLACES[scene.place]}."
    one, other = (scene.groups[i] for i in rng.permutation(2))
    verb = "is" if scene.first.count == 1 else "are"
    return (
        f"{_there(one)} {group_words(one)} and {group_words(other)} {PLACES[scene.place]}. "
        f"The {noun(scene.first.kind, scene.first.count)} {verb} {scene.relation} "
        f"{the_words(scene.second)}."
    )


def _there(group: Group) -> str:
    return "There is" if group.count == 1 else "There are"


MAP_SIDE = 4
"""Words along one side of a map."""


def word_map(scene: Scene, rng: np.random.Generator) -> str:
    """The scene as 4 × 4 words, row by row: each names the thing there, or the place."""
    cells = [scene.place] * MAP_SIDE**2
    for group, chosen in zip(scene.groups, _cells(scene, rng), strict=True):
        for cell in chosen:
            cells[cell] = group.kind
    return "".join(f" {word}" for word in cells)


def _cells(scene: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    """Cells of each group, drawn until the groups stand as the relation says and not aslant."""
    if scene.second is None:
        return [rng.choice(MAP_SIDE**2, scene.first.count, replace=False)]
    while True:
        chosen = rng.choice(MAP_SIDE**2, scene.first.count + scene.second.count, replace=False)
        along = chosen % MAP_SIDE if scene.relation == "left of" else chosen // MAP_SIDE
        across = chosen // MAP_SIDE if scene.relation == "left of" else chosen % MAP_SIDE
        # The group that is left or above comes first in the order of that axis.
        chosen, along, across = (
            x[np.argsort(along, kind="stable")] for x in (chosen, along, across)
        )
        n = scene.first.count
        apart = along[n:].mean() - along[:n].mean()
        if along[n - 1] < along[n] and abs(across[n:].mean() - across[:n].mean()) < 0.7 * apart:
            return [chosen[:n], chosen[n:]]
