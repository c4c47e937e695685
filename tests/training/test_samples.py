"""The order of samples, their captions, and batches of them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from training.model import IGNORED
from training.samples import (
    Captions,
    Collate,
    Draws,
    Joined,
    Sample,
    Texts,
    read_texts,
    split,
)
from utils.errors import UserError


class Numbers:
    """A dataset whose sample k has the single id k, and two captions; some cannot be read."""

    def __init__(
        self, count: int, bad: tuple[int, ...] = (), first: int = 0, samples_a_picture: int = 1
    ) -> None:
        self.count, self.bad, self.first = count, bad, first
        self.samples_a_picture = samples_a_picture

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"number {self.first + index}"

    def picture(self, index: int) -> str:
        return f"picture {(self.first + index) // self.samples_a_picture}"

    def sample(self, index: int, rng: random.Random) -> Sample:
        if index in self.bad:
            raise UserError(f"{self.name(index)} is bad")
        return Sample([self.first + index, rng.randrange(2)], None)


def numbers(samples: Draws, places: range) -> list[int]:
    return [samples[k].ids[0] for k in places]


def test_each_pass_has_all_samples_in_an_order_of_its_own():
    draws = Draws(Numbers(20), seed=1)
    passes = [numbers(draws, range(20 * k, 20 * k + 20)) for k in range(3)]
    assert all(sorted(order) == list(range(20)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_a_draw_depends_on_its_number_and_the_seed_alone():
    whole = [Draws(Numbers(7), seed=3)[k] for k in range(30)]
    backwards = Draws(Numbers(7), seed=3)
    assert [backwards[k] for k in reversed(range(30))] == whole[::-1]
    assert [Draws(Numbers(7), seed=4)[k] for k in range(30)] != whole
    assert len({sample.ids[1] for sample in whole}) == 2  # captions vary between draws


def test_bad_samples_stop_or_are_replaced_and_named(caplog):
    with pytest.raises(UserError, match=r"number [23] is bad"):
        numbers(Draws(Numbers(5, bad=(2, 3)), seed=0), range(5))
    found = numbers(Draws(Numbers(5, bad=(2, 3)), seed=0, skip_bad=True), range(5))
    assert Counter(found) == {0: 1, 1: 1, 4: 3}
    assert "number 2 is bad" in caplog.text
    with pytest.raises(UserError, match="all 2 samples are bad"):
        Draws(Numbers(2, bad=(0, 1)), seed=0, skip_bad=True)[0]


def test_joined_datasets_follow_each_other():
    joined = Joined([Numbers(3), Numbers(0, first=50), Numbers(2, first=100)])
    rng = random.Random(0)
    assert [joined.sample(k, rng).ids[0] for k in range(len(joined))] == [0, 1, 2, 100, 101]
    assert joined.name(4) == "number 101"
    part = joined.part([4, 0])
    assert [part.sample(k, rng).ids[0] for k in range(2)] == [101, 0]


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(100, 0.1, 10), (5, 0.01, 1), (5, 0, 0), (1, 0.5, 0), (2, 0.9, 1)]
)
def test_a_split_is_disjoint_complete_and_the_same_each_time(count, share, kept):
    joined = Joined([Numbers(count)])
    parts = split(joined, share, seed=2)
    names = [[part.name(k) for k in range(len(part))] for part in parts]
    assert len(parts[1]) == kept
    assert sorted(names[0] + names[1]) == sorted(joined.name(k) for k in range(count))
    again = split(joined, share, seed=2)
    assert names == [[part.name(k) for k in range(len(part))] for part in again]


@pytest.mark.parametrize(("count", "share", "kept"), [(90, 0.1, 9), (9, 0.01, 3), (3, 0.5, 0)])
def test_a_split_cuts_no_picture_in_two(count, share, kept):
    # Of the pictures with three samples, the last are in another dataset.
    joined = Joined(
        [Numbers(count - 1, samples_a_picture=3), Numbers(1, (), count - 1, samples_a_picture=3)]
    )
    for seed in range(5):
        parts = split(joined, share, seed)
        train, evaluated = ({p.picture(k) for k in range(len(p))} for p in parts)
        assert not train & evaluated
        assert [len(part) for part in parts] == [count - kept, kept]


def test_where_each_sample_has_a_picture_of_its_own_the_split_is_that_of_samples():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5)).tolist()
    parts = split(Joined([Numbers(40)]), 0.2, seed=5)
    rng = random.Random(0)
    found = [[part.sample(k, rng).ids[0] for k in range(len(part))] for part in parts]
    assert found == [sorted(order[8:]), sorted(order[:8])]


def test_batches_are_as_long_as_their_longest_row_and_its_end():
    batch = Collate(eos_id=9, max_tokens=10)([Sample([1, 2, 3], None), Sample([4], None)])
    assert batch["ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3, 9], [4, 9, IGNORED, IGNORED]]
    assert "pixels" not in batch


def test_a_full_row_has_no_end():
    batch = Collate(eos_id=9, max_tokens=3)([Sample([1, 2, 3], torch.ones(1, 3, 2, 2))])
    assert batch["labels"].tolist() == [[1, 2, 3]]
    assert batch["pixels"].shape == (1, 3, 2, 2)


def test_captions_are_chosen_among_several(pairs, tokenizer):
    picture = pairs[0][0]
    samples = Captions([(picture, ["one", "two"]), (picture, "three")], tokenizer, 32, 8)
    found = {tokenizer.decode(samples.sample(0, random.Random(k)).ids) for k in range(20)}
    assert found == {"one", "two"}
    assert tokenizer.decode(samples.sample(1, random.Random(0)).ids) == "three"


def test_text_files_by_line_and_by_json(tmp_path: Path, tokenizer):
    (tmp_path / "a.txt").write_text("one line\n\nanother\r\n")
    (tmp_path / "b.jsonl").write_text('{"text": "two\\nlines"}\n\n{"text": "x"}\n')
    assert read_texts(tmp_path / "a.txt") == ["one line", "another"]
    assert read_texts(tmp_path / "b.jsonl") == ["two\nlines", "x"]
    texts = Texts(["one line"], tokenizer, 3, "a.txt")
    assert texts.sample(0, random.Random(0)).ids == tokenizer.encode("one line")[:3]
    assert texts.name(0) == "a.txt 1"


@pytest.mark.parametrize("line", ["{", '{"texts": "a"}', '{"text": 3}', "[]", "[" * 100_000])
def test_malformed_lines_are_named(tmp_path: Path, line):
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"b\.jsonl: line 2"):
        read_texts(tmp_path / "b.jsonl")


def test_unreadable_texts_are_named(tmp_path: Path):
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    for name in ("c.txt", "none.txt"):
        with pytest.raises(UserError, match=f"{name}: cannot read"):
            read_texts(tmp_path / name)
