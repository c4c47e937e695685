"""Scores against computations of the tests' own, and against values worked out by hand."""

from __future__ import annotations

import math
import sys
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from utils.errors import UserError
from utils.metrics import (
    bleu,
    check_metrics,
    cider,
    normalised_answer,
    rouge_l,
    vqa_accuracy,
    vqa_accuracy_of,
    words,
)

WORDS = ("a", "red", "cat", "sits", "under", "two", "blue", "trees", "near", "lake")


def sentence(rng: np.random.Generator, most: int = 12) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


@pytest.fixture
def corpus(rng) -> tuple[list[str], list[list[str]]]:
    """Thirty predictions, near to one of their references or empty, with 1 to 4 references."""
    references = [[sentence(rng) for _ in range(rng.integers(1, 5))] for _ in range(30)]
    predictions = [f"{line[0]} {sentence(rng, 4)}" for line in references]
    return ["", *predictions[1:]], references


def ngrams(text: str, n: int) -> Counter:
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def slow_bleu(predictions: list[str], references: list[list[str]]) -> float:
    """Papineni et al.: clipped precisions of 1 to 4 words, and the brevity penalty."""
    logs = []
    for n in range(1, 5):
        right = total = 0
        for said, line in zip(predictions, references, strict=True):
            for gram, count in ngrams(said, n).items():
                right += min(count, max(ngrams(text, n)[gram] for text in line))
                total += count
        logs.append(math.log(right / total))
    made = given = 0
    for said, line in zip(predictions, references, strict=True):
        size = len(said.split())
        made += size
        given += min((abs(len(t.split()) - size), len(t.split())) for t in line)[1]
    return 100 * math.exp(sum(logs) / 4 + min(0, 1 - given / made))


def slow_cider(predictions: list[str], references: list[list[str]]) -> list[float]:
    """Vedantam et al., with the clipping and the penalty of lengths (sigma 6) of CIDEr-D."""
    found = []
    for said, line in zip(predictions, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            seen = [set().union(*(ngrams(t, n) for t in texts)) for texts in references]

            def weight(gram, seen=seen):
                return math.log(len(seen) / max(1, sum(gram in grams for grams in seen)))

            def weights(text, n=n, weight=weight):
                return {gram: count * weight(gram) for gram, count in ngrams(text, n).items()}

            for text in line:
                one, other = weights(said), weights(text)
                norm = math.hypot(*one.values()) * math.hypot(*other.values())
                dot = sum(min(w, other[g]) * other[g] for g, w in one.items() if g in other)
                # Lengths are counted in pairs of words, as COCO's program does.
                apart = sum(ngrams(said, 2).values()) - sum(ngrams(text, 2).values())
                total += (dot / norm if norm else 0.0) * math.exp(-(apart**2) / 72) / len(line)
        found.append(1000 * total / 4)
    return found


def slow_rouge(said: str, line: list[str]) -> float:
    """Lin: the longest common subsequence, beta 1.2, best precision and best recall."""

    def common(one: tuple, other: tuple) -> int:
        @cache
        def of(i: int, j: int) -> int:
            if i == len(one) or j == len(other):
                return 0
            if one[i] == other[j]:
                return 1 + of(i + 1, j + 1)
            return max(of(i + 1, j), of(i, j + 1))

        return of(0, 0)

    lengths = [common(tuple(said.split()), tuple(t.split())) for t in line]
    recall = max(n / len(t.split()) for n, t in zip(lengths, line, strict=True))
    precision = max(lengths) / max(1, len(said.split()))
    if not precision * recall:
        return 0.0
    return 100 * (1 + 1.44) * precision * recall / (recall + 1.44 * precision)


def test_bleu_is_that_of_the_definition(corpus):
    scored = bleu(*corpus)
    assert scored.total == pytest.approx(slow_bleu(*corpus))
    assert 1 < scored.total < 99


def test_cider_is_that_of_the_definition(corpus):
    pytest.importorskip("pycocoevalcap")
    scored, expected = cider(*corpus), slow_cider(*corpus)
    assert scored.each == pytest.approx(expected)
    assert scored.total == pytest.approx(np.mean(expected))
    assert len({round(score) for score in expected}) > 10


def test_rouge_is_that_of_the_definition(corpus):
    pytest.importorskip("pycocoevalcap")
    scored = rouge_l(*corpus)
    expected = [slow_rouge(said, line) for said, line in zip(*corpus, strict=True)]
    assert scored.each == pytest.approx(expected)
    assert scored.total == pytest.approx(np.mean(expected))


def test_captions_are_compared_as_words():
    said, line = ["A RED cat, sits under “two” trees!"], [["a red cat sits under two trees"]]
    assert bleu(said, line).total == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's dog.", "a man 's dog"),
        ("They don't; we'll see...", "they do n't we 'll see"),
        ("it's they\N{RIGHT SINGLE QUOTATION MARK}re", "it 's they 're"),
        ("He cannot, I'm gonna", "he can not i 'm gon na"),
        ("couldn't've", "could n't 've"),
        ("a well-known T-shirt", "a well-known t-shirt"),
        ("five o'clock at 10:30", "five o'clock at 10:30"),
        ("1,000 people, 3.5 miles", "1,000 people 3.5 miles"),
        ("in the U.S. army", "in the u.s. army"),
        ('a "stop" sign (red) [x]', "a stop sign red x"),
        ("50% & $5", "50 % & $ 5"),
        ("Zwei Bäume, 木", "zwei bäume 木"),
        (" \n\t ...!", ""),
        ("", ""),
    ],
)
def test_words_of_captions(text, expected):
    assert " ".join(words(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("an apple and a pear", "apple and pear"),
        ("two", "2"),
        ("None", "0"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("1,000 men", "1000 men"),
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("red, white", "red white"),
        ("t-shirt", "t shirt"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("oclock", "o'clock"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("he said\nno", "he said no"),
        (" ? ", ""),
    ],
)
def test_answers_are_normalised_as_published(text, expected):
    assert normalised_answer(text) == expected


def test_vqa_accuracy_averages_over_nine_of_ten_annotators(rng):
    answers = ["red", "blue", "green", "a dog"]
    for _ in range(50):
        given = [str(rng.choice(answers)) for _ in range(10)]
        said = str(rng.choice(answers))
        subsets = [sum(a == said for a in nine) for nine in combinations(given, 9)]
        expected = sum(min(Fraction(n, 3), Fraction(1)) for n in subsets) / 10
        assert vqa_accuracy_of(f"{said}.", given) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_vqa_accuracy_of_ten(agreeing, expected):
    answers = ["yes"] * agreeing + ["no"] * (10 - agreeing)
    assert vqa_accuracy_of("Yes", answers) == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_annotators_can_be_agreed_with(count):
    assert vqa_accuracy_of("yes", ["yes"] * count) == 1
    assert vqa_accuracy_of("no", ["yes"] * count) == 0


def test_vqa_accuracy_is_the_mean():
    scored = vqa_accuracy(["yes", "no", "2"], [["yes"], ["yes"], ["two"] * 10])
    assert scored.each == [100, 0, 100]
    assert scored.total == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("metric", "module", "command"),
    [
        ("bleu", "sacrebleu.metrics", "pip install sacrebleu"),
        ("cider", "pycocoevalcap.cider.cider", "pip install --no-deps pycocoevalcap"),
        ("rouge", "pycocoevalcap.rouge.rouge", "pip install --no-deps pycocoevalcap"),
    ],
)
def test_a_missing_library_is_named_with_its_command(metric, module, command, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=command):
        check_metrics(["vqa", metric])
    check_metrics(["vqa"])
