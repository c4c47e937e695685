"""Scores of generated captions and answers, as they are published.

Captions are compared as words of :func:`words`: BLEU by sacrebleu, CIDEr (its variant CIDEr-D, as
COCO's evaluation computes it) and ROUGE-L by pycocoevalcap. All scores are times 100.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from utils.errors import UserError


class Scored(NamedTuple):
    """A metric's result.

    Attributes:
        total: of all samples, times 100.
        each: of each sample, times 100; None where a metric is one of the whole only.
    """

    total: float
    each: list[float] | None


References = Sequence[Sequence[str]]
"""For each sample the texts that people wrote."""


# ---- words of captions --------------------------------------------------------------------------

_SUFFIX = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")
_JOINED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_WORD = re.compile(
    r"n't(?!\w)|'(?:s|re|ve|ll|d|m)(?!\w)"  # what was cut off
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\d+(?:[.,:/]\d+)+"  # 1,000, 3.5, 10:30
    r"|\w+(?:[-'&]\w+)*"  # t-shirt, o'clock
    r"|\S"
)
_PUNCTUATION = set("'\"`()[]{}.?!,:;-…–—«»\u2018\u201c\u201d")


def words(text: str) -> list[str]:
    """Words of a caption in small letters, cut as in the Penn Treebank, without punctuation.

    COCO's evaluation cuts with Stanford's tokenizer, a Java program. This one differs in that it
    keeps spellings (there "colour" becomes "color"), leaves brackets out (there they stay, as
    "-lrb-"), takes the period from abbreviations of one word ("mr."), and knows no addresses or
    emoticons. Captions have few of those: on plain sentences both give the same words.

    >>> words("The dog's T-shirt, it can't be red.")
    ['the', 'dog', "'s", 't-shirt', 'it', 'ca', "n't", 'be', 'red']
    """
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = _SUFFIX.sub(r" \1", text)
    text = _JOINED.sub(lambda found: " ".join(part for part in found.groups() if part), text)
    return [word for word in _WORD.findall(text) if word not in _PUNCTUATION]


def _joined(text: str) -> str:
    return " ".join(words(text))


def bleu(predictions: Sequence[str], references: References) -> Scored:
    """BLEU of up to four words in a row, over all samples together, without smoothing."""
    library = _library("sacrebleu.metrics")
    texts = [[_joined(text) for text in line] for line in references]
    most = max(map(len, texts))
    # sacrebleu takes the first reference of every sample, then the second of each that has one.
    columns = [[line[i] if i < len(line) else None for line in texts] for i in range(most)]
    metric = library.BLEU(tokenize="none", smooth_method="none", force=True)
    return Scored(metric.corpus_score([_joined(p) for p in predictions], columns).score, None)


def cider(predictions: Sequence[str], references: References) -> Scored:
    """CIDEr-D: words weighted by how rare they are among the samples' references.

    One sample alone has no rare words: its score is 0.
    """
    return _coco("pycocoevalcap.cider.cider", "Cider", predictions, references)


def rouge_l(predictions: Sequence[str], references: References) -> Scored:
    """ROUGE-L: the longest common sequence of words."""
    return _coco("pycocoevalcap.rouge.rouge", "Rouge", predictions, references)


def _coco(module: str, name: str, predictions: Sequence[str], references: References) -> Scored:
    given = {i: [_joined(text) for text in line] for i, line in enumerate(references)}
    made = {i: [_joined(text)] for i, text in enumerate(predictions)}
    total, each = getattr(_library(module), name)().compute_score(given, made)
    return Scored(100 * float(total), [100 * float(score) for score in each])


# ---- answers to questions -----------------------------------------------------------------------

# The marks, words and contractions of the published evaluation of VQA.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_DIGITS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
# Written with one apostrophe too few, they get it back.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_MENDED = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the one that the published list has the other way round

_ENOUGH = 3
"""Annotators who agree with a right answer."""


def normalised_answer(text: str) -> str:
    """An answer as the published evaluation of VQA compares it.

    Marks beside a space go and others become spaces, periods go except before a digit, articles go,
    number words become digits, contractions get their apostrophes.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    found = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or has_thousands else " ")
    found = re.sub(r"\.(?!\d)", "", found).lower()
    numbered = [_DIGITS.get(word, word) for word in found.split()]
    return " ".join(_MENDED.get(word, word) for word in numbered if word not in _ARTICLES)


def vqa_accuracy_of(prediction: str, answers: Sequence[str]) -> float:
    """How far an answer agrees with those of people, 0 to 1.

    min(n / 3, 1) where n of the others agree, averaged over leaving out each annotator: with ten of
    them the published accuracy. Both sides are always normalised; the published program leaves out
    the people's where all ten are equal. Fewer than four answers could never give 1: there, one
    that agrees is enough.
    """
    said = normalised_answer(prediction)
    agreeing = [normalised_answer(answer) == said for answer in answers]
    if len(answers) <= _ENOUGH:
        return float(any(agreeing))
    n = sum(agreeing)
    return sum(min((n - left_out) / _ENOUGH, 1.0) for left_out in agreeing) / len(agreeing)


def vqa_accuracy(predictions: Sequence[str], references: References) -> Scored:
    """The mean of :func:`vqa_accuracy_of`."""
    each = [
        100 * vqa_accuracy_of(prediction, answers)
        for prediction, answers in zip(predictions, references, strict=True)
    ]
    return Scored(sum(each) / len(each), each)


# ---- all of them --------------------------------------------------------------------------------

METRICS: dict[str, Callable[[Sequence[str], References], Scored]] = {
    "bleu": bleu,
    "cider": cider,
    "rouge": rouge_l,
    "vqa": vqa_accuracy,
}
"""Metrics by name; each takes a prediction and the references of every sample."""

_MODULES = {
    "bleu": "sacrebleu.metrics",
    "cider": "pycocoevalcap.cider.cider",
    "rouge": "pycocoevalcap.rouge.rouge",
}
# pycocoevalcap asks for packages that these two metrics do not use.
_INSTALL = {"sacrebleu": "sacrebleu", "pycocoevalcap": "--no-deps pycocoevalcap"}


def check_metrics(names: Sequence[str]) -> None:
    """Checks that the libraries of metrics are installed.

    Raises:
        UserError: one is not; the message names the command that installs it.
    """
    for name in names:
        if name in _MODULES:
            _library(_MODULES[name])


def _library(module: str) -> Any:
    package = module.split(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        users = ", ".join(name for name, used in _MODULES.items() if used.startswith(package))
        raise UserError(
            f"the metrics {users} need a library: pip install {_INSTALL[package]} "
            "(or choose others with --metrics)"
        ) from error
