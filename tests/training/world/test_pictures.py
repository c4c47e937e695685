"""Pictures show their scene: deterministic, inside the frame, groups apart."""

from __future__ import annotations

import numpy as np

from training.world.kinds import KINDS
from training.world.pictures import EMOJI, arrange, draw
from training.world.scenes import Scene, random_scene


def test_the_same_seed_draws_the_same_picture(rng: np.random.Generator):
    scene = random_scene(rng)
    one, same, other = (draw(scene, np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    assert (one == same).all()
    assert (one != other).any()


def test_things_are_all_there_inside_the_picture(rng: np.random.Generator):
    for _ in range(200):
        scene = random_scene(rng)
        things = arrange(scene, rng)
        for group in scene.groups:
            assert sum(thing.kind == group.kind for thing in things) == group.count
        assert len(things) == sum(group.count for group in scene.groups)
        for thing in things:
            for centre in (thing.x, thing.y):
                assert thing.size / 2 <= centre + 1e-9
                assert centre <= 1 - thing.size / 2 + 1e-9


def centres(scene: Scene, rng: np.random.Generator) -> list[np.ndarray]:
    """Centres of each group's things: [n, (x, y)]."""
    things = arrange(scene, rng)
    return [np.array([(t.x, t.y) for t in things if t.kind == g.kind]) for g in scene.groups]


def test_groups_stand_as_the_relation_says_and_not_aslant(rng: np.random.Generator):
    for _ in range(200):
        scene = random_scene(rng)
        if scene.second is None:
            continue
        first, second = centres(scene, rng)
        axis = 0 if scene.relation == "left of" else 1
        assert first[:, axis].max() < second[:, axis].min()
        apart = np.abs(second.mean(0) - first.mean(0))
        assert apart[1 - axis] < apart[axis]


def test_there_is_a_picture_for_every_kind_and_the_font_has_its_licence():
    assert {path.stem for path in EMOJI.glob("*.png")} == KINDS.keys()
    assert "SIL OPEN FONT LICENSE" in (EMOJI / "LICENSE").read_text()
