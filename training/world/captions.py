"""Scenes as text: captions, other ways to describe, and the way back."""

from __future__ import annotations

import re

import numpy as np

from training.world.kinds import COUNTS, KINDS, PLACES
from training.world.scenes import OPPOSITE, Group, Scene

CAPTION_START = "A picture of"

COUNT_WORDS = ("one", *COUNTS[1:])

_KIND_OF = {plural: kind for kind, plural in KINDS.items()}
_PLACE_OF = {words: place for place, words in PLACES.items()}
_KIND = f"({'|'.join(_KIND_OF)})"
_COUNTED = f"({'|'.join(COUNT_WORDS)}) ([a-z]+)"
_CAPTION = re.compile(
    rf"(?:{CAPTION_START})? ?{_KIND}(?: ({'|'.join(OPPOSITE)}) {_KIND})?"
    rf" ({'|'.join(_PLACE_OF)}): {_COUNTED}(?:, {_COUNTED})?\."
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
    """A sentence such as "A picture of bananas left of dogs in snow: two bananas, one dog.".

    The group to the left or above comes first; only questions look from the other side. Kinds come
    before counts, so that a small model knows what to count when it has to say how many.
    """
    kinds, counts = KINDS[scene.first.kind], _counted(scene.first)
    if scene.second is not None:
        kinds = f"{kinds} {scene.relation} {KINDS[scene.second.kind]}"
        counts = f"{counts}, {_counted(scene.second)}"
    return f"{CAPTION_START} {kinds} {PLACES[scene.place]}: {counts}."


def _counted(group: Group) -> str:
    return f"{COUNT_WORDS[group.count - 1]} {noun(group.kind, group.count)}"


def parse_caption(text: str) -> Scene | None:
    """The scene that a caption describes; None if the text is no caption.

    Args:
        text: a caption, with or without its first words, "A picture of".
    """
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        return None
    kind, relation, other_kind, place, *counted = match.groups()
    first, second = _group(kind, *counted[:2]), _group(other_kind, *counted[2:])
    if first is None or (second is None) != (relation is None):
        return None
    if second is None:
        # A second count without a second kind belongs to nothing.
        return Scene(_PLACE_OF[place], first) if counted[2] is None else None
    return Scene.of(_PLACE_OF[place], first, second, relation)


def _group(kinds: str | None, count: str | None, word: str | None) -> Group | None:
    """The group of a plural and a counted noun; None if either is missing or they do not agree."""
    if kinds is None or count is None:
        return None
    group = Group(_KIND_OF[kinds], COUNT_WORDS.index(count) + 1)
    return group if noun(group.kind, group.count) == word else None


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
