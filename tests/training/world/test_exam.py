"""The exam: held-out scenes, as many yes as no, and answers judged by what they say."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from training.world.exam import caption_tasks, fact_tasks, topic_tasks, wilson_interval
from training.world.scenes import split_of


@pytest.mark.parametrize("split", ["held_out", "held_out_combinations"])
def test_scenes_are_of_the_split(split: str):
    tasks = (
        caption_tasks(split, 30, 1) + fact_tasks(split, 1, 1) + topic_tasks("count", split, 9, 1)
    )
    assert {split_of(task.scene) for task in tasks} == {split}


def test_each_fact_has_as_many_yes_as_no():
    counts = Counter((task.about, task.answer) for task in fact_tasks("held_out", 2, 3))
    assert set(counts.values()) == {2}


def test_a_caption_is_right_from_either_side_and_wrong_with_another_count():
    task = next(t for t in caption_tasks("held_out", 50, 2) if t.scene.second is not None)
    assert task.is_right(task.answer)
    assert task.is_right(f"A picture of{task.answer}")
    assert not task.is_right(task.answer.replace(".", ""))
    assert not task.is_right("")


@pytest.mark.parametrize(("right", "total"), [(0, 10), (7, 20), (95, 100), (600, 600)])
def test_intervals_are_wilsons(right: int, total: int):
    # The ends are the true shares from which the found one is 1.96 standard deviations away.
    for end in wilson_interval(right, total):
        assert abs(right / total - end) == pytest.approx(
            1.96 * math.sqrt(max(0.0, end * (1 - end)) / total), abs=1e-6
        )
