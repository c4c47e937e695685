"""Samples of a run: what a dataset has to offer, and the order in which samples are drawn.

The k-th sample of a run depends on nothing but the run's seed, the datasets and k, its caption
included. So a run that goes on from a checkpoint sees what an unbroken one sees, and any number of
processes share the same batches.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
import random
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from PIL import Image
from torch.utils.data import Dataset

from training.model import caption_labels
from utils.errors import UserError
from utils.images import preprocess

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

_log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A caption's ids, without padding, and its picture [1, 3, y, x], if it has one."""

    ids: list[int]
    pixels: torch.Tensor | None


class Samples(Protocol):
    """A dataset."""

    def __len__(self) -> int:
        """Number of samples."""

    def name(self, index: int) -> str:
        """What to call a sample in messages."""

    def sample(self, index: int, rng: random.Random) -> Sample:
        """A sample; ``rng`` chooses among its captions.

        Raises:
            UserError: it cannot be read.
        """


class Grouped(Samples, Protocol):
    """A dataset that says which samples show the same picture."""

    def picture(self, index: int) -> Hashable:
        """What is equal for those samples, and for no others."""


class Captions:
    """Pictures in memory with their captions."""

    def __init__(
        self,
        pairs: Sequence[tuple[Image.Image, str | Sequence[str]]],
        tokenizer: GPT2Tokenizer,
        resolution: int,
        max_tokens: int,
    ) -> None:
        """Pairs of a picture and its caption, or several to choose from.

        Args:
            pairs: pictures of any size and mode with captions.
            tokenizer: for the captions.
            resolution: side of the square that pictures are brought to.
            max_tokens: longer captions are cut.
        """
        self._pairs = pairs
        self._tokenizer = tokenizer
        self._resolution = resolution
        self._max_tokens = max_tokens

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The pair's number."""
        return f"pair {index}"

    def sample(self, index: int, rng: random.Random) -> Sample:
        """See `Samples`."""
        picture, captions = self._pairs[index]
        caption = captions if isinstance(captions, str) else rng.choice(captions)
        pixels = torch.from_numpy(preprocess(picture, self._resolution))
        return Sample(encode(self._tokenizer, caption, self._max_tokens), pixels)


class Texts:
    """Texts in memory."""

    def __init__(
        self, texts: Sequence[str], tokenizer: GPT2Tokenizer, max_tokens: int, name: str = "text"
    ) -> None:
        """Texts, each a sample; longer ones than ``max_tokens`` are cut."""
        self._texts = texts
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._name = name

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._texts)

    def name(self, index: int) -> str:
        """The text's number."""
        return f"{self._name} {index + 1}"

    def picture(self, index: int) -> Hashable:
        """Each text is by itself."""
        return self.name(index)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """See `Samples`."""
        return Sample(encode(self._tokenizer, self._texts[index], self._max_tokens), None)


def read_texts(path: Path) -> list[str]:
    """The texts of a file: one per line, or of each line of a ``.jsonl`` the value of "text".

    Raises:
        UserError: unreadable, or a line that is not such JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the texts: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"] if path.suffix == ".jsonl" else line.rstrip("\r")
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{path}: line {number} is not an object with a "text"')
        found.append(text)
    return found


def encode(tokenizer: GPT2Tokenizer, text: str, max_tokens: int) -> list[int]:
    """The ids of a text, nothing added, at most ``max_tokens``."""
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return list(ids[:max_tokens])


class Joined:
    """Several datasets as one, or a part of them."""

    def __init__(self, datasets: Sequence[Grouped], indices: Sequence[int] | None = None) -> None:
        """The samples of all datasets, in order, or those of given numbers."""
        self._datasets = datasets
        self._ends = list(itertools.accumulate(len(dataset) for dataset in datasets))
        total = self._ends[-1] if self._ends else 0
        self._indices = range(total) if indices is None else indices

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._indices)

    def name(self, index: int) -> str:
        """The sample's name in its dataset."""
        dataset, own = self._find(index)
        return dataset.name(own)

    def picture(self, index: int) -> Hashable:
        """See `Grouped`."""
        dataset, own = self._find(index)
        return dataset.picture(own)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """See `Samples`."""
        dataset, own = self._find(index)
        return dataset.sample(own, rng)

    def part(self, numbers: Iterable[int]) -> Joined:
        """Some of the samples."""
        return Joined(self._datasets, [self._indices[number] for number in numbers])

    def _find(self, index: int) -> tuple[Grouped, int]:
        place = self._indices[index]
        number = bisect.bisect_right(self._ends, place)
        return self._datasets[number], place - (self._ends[number - 1] if number else 0)


def split(samples: Joined, share: float, seed: int) -> tuple[Joined, Joined]:
    """Parts for training and evaluation: disjoint, no picture in both, the same for the same seed.

    Pictures with all their samples go to the second part until it has ``share`` of the samples, one
    at least where ``share`` is not 0; one picture is left for the first.
    """
    members: dict[Hashable, list[int]] = {}
    for number in range(len(samples)):
        members.setdefault(samples.picture(number), []).append(number)
    pictures = list(members.values())
    order = _order(len(pictures), seed)
    wanted = max(round(len(samples) * share), 1 if share > 0 else 0)
    kept: set[int] = set()
    for place in order[:-1]:
        if len(kept) >= wanted:
            break
        kept.update(pictures[place])
    rest = (number for number in range(len(samples)) if number not in kept)
    return samples.part(rest), samples.part(sorted(kept))


def _order(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()


class Draws(Dataset[Sample]):
    """An endless sequence of samples: each pass has all of them, in an order of its own."""

    def __init__(self, samples: Samples, seed: int, skip_bad: bool = False) -> None:
        """Sequence over a dataset.

        Args:
            samples: the dataset; not empty.
            seed: another seed is another sequence.
            skip_bad: put the next sample in the place of one that cannot be read, and log it.
        """
        self._samples = samples
        self._seed = seed
        self._skip_bad = skip_bad
        self._epoch_order: tuple[int, list[int]] = (-1, [])

    def name(self, k: int) -> str:
        """The name of the k-th sample."""
        return self._samples.name(self._index(k))

    def __getitem__(self, k: int) -> Sample:
        """The k-th sample.

        Raises:
            UserError: it cannot be read; with ``skip_bad``, none can.
        """
        index, count = self._index(k), len(self._samples)
        # Seeded by text, since sums of seed and k would repeat.
        rng = random.Random(f"{self._seed}/{k}")
        for tried in range(count):
            try:
                return self._samples.sample((index + tried) % count, rng)
            except UserError as error:
                if not self._skip_bad:
                    raise
                _log.warning("skipped: %s", error)
        raise UserError(f"all {count} samples are bad; see the log for each")

    def _index(self, k: int) -> int:
        epoch, place = divmod(k, len(self._samples))
        if self._epoch_order[0] != epoch:
            self._epoch_order = (epoch, _order(len(self._samples), self._seed + epoch))
        return self._epoch_order[1][place]


class Collate:
    """Joins samples to a batch: ``ids`` and ``labels`` [b, t], and ``pixels`` [b, 3, y, x]."""

    def __init__(self, eos_id: int, max_tokens: int) -> None:
        """Rows are padded with ``eos_id`` up to the longest and its end, at most ``max_tokens``.

        What lies behind a row's end changes no loss, so rows are no longer than needed.
        """
        self._eos_id = eos_id
        self._max_tokens = max_tokens

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """The batch of some samples."""
        length = min(max(len(sample.ids) for sample in samples) + 1, self._max_tokens)
        ids = torch.full((len(samples), length), self._eos_id)
        for row, sample in zip(ids, samples, strict=True):
            kept = torch.tensor(sample.ids[:length], dtype=torch.long)
            row[: len(kept)] = kept
        batch = {"ids": ids, "labels": caption_labels(ids, self._eos_id)}
        pictures = [sample.pixels for sample in samples if sample.pixels is not None]
        if pictures:
            batch["pixels"] = torch.cat(pictures)
        return batch
