"""Runs of the cached scheme: pictures and prompts once, then only what is new in each sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from config.config import MagmaConfig
from execution.buckets import bucket_of, prompt_buckets, score_buckets
from execution.cache import kept_blocks
from execution.cached import RunKind
from execution.engine import memory_and_files
from execution.kept import Blocks
from execution.prompts import (
    Array,
    Embedded,
    Ids,
    Picture,
    Prompt,
    check_continuations,
    check_prompts,
    images_host,
)
from execution.runs import MagmaSession, on_replicas, targets_host, words_host
from utils.errors import UserError

Rows = list[int]
"""What stands at each position: a row of the kept ones or, counted on behind them, a word's id."""

PAD = -1
"""What stands at a slot before a sequence's first position."""


class CachedRuns:
    """See :class:`execution.runs.Runs`. Prompts are pictures, embeddings and text in any order.

    The arrays of a run's inputs are made once and filled in place: most of them are the same on all
    replicas, and views say so.
    """

    def __init__(self, session: MagmaSession, config: MagmaConfig) -> None:
        """See :func:`execution.runs.runs_of`."""
        self._session = session
        self._config = config
        self._blocks = Blocks(kept_blocks(config))
        self._num_kept = kept_blocks(config) * config.image_tokens
        self._score_lengths = score_buckets(config.text_tokens)
        self._make_feeds()
        # How many slots and sequences grow; none before a start.
        self._slots, self._growing = 0, 0
        # What stands in the first slots of the cache: prompts, all but their last position.
        self._held: list[Rows] = []

    def _make_feeds(self) -> None:
        config, inputs, b = self._config, self._session.inputs, self._config.batch
        lm, visual = config.transformer, config.visual
        side, window = visual.image_resolution, self._score_lengths[-1]
        self._host = {
            "kind": np.zeros((), np.int32),
            "length": np.zeros((), np.int32),
            "start": np.zeros(1, np.int32),
            "image": np.zeros((1, 3, side, side), str(visual.precision)),
            "rows": np.zeros((config.image_tokens, lm.hidden_size), str(lm.precision)),
            "pads": np.zeros(b, np.int32),
            "sequences": np.zeros(b, np.int32),
            "source": np.zeros((b, config.total_tokens), np.int32),
        }
        if b == 1:
            del self._host["sequences"]  # nothing to share: its program has no such branch
        self._words = words_host(config, np.zeros(b * config.text_tokens, np.int32))
        self._targets = targets_host(config, np.zeros((b, window), np.int32))
        self._feeds = {
            getattr(inputs, name): on_replicas(config, array) for name, array in self._host.items()
        }
        self._feeds |= {inputs.words: self._words, inputs.targets: self._targets}

    # -- what can be asked for ----------------------------------------------------------------

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """See :class:`execution.runs.Runs`."""
        rows = self._resolve(images, prompts)
        logits = self._prefill(rows)
        self._slots, self._growing = max(map(len, rows)), len(rows)
        return logits

    def step(self, tokens: Sequence[int | None]) -> Array:
        """See :class:`execution.runs.Runs`."""
        if len(tokens) != self._growing:
            raise UserError(
                f"{len(tokens)} tokens, but {self._growing} sequences have been started; nothing "
                "else may be run in between"
            )
        if self._slots == self._config.total_tokens:
            raise UserError(f"no position is left of {self._slots}; ask for fewer tokens")
        # An ended sequence goes on with any id: nobody reads what comes of it.
        self._set_words(np.array([0 if token is None else token for token in tokens]))
        self._slots += 1
        logits = self._run(RunKind.DECODE, self._slots, self._slots - 1)
        return self._joined(logits)[: self._growing]

    def score(
        self,
        images: Array | None,
        prompts: Sequence[Prompt],
        continuations: Sequence[Ids],
    ) -> list[Array]:
        """See :class:`execution.runs.Runs`.

        The last position of a prompt is read with the continuation: the first token follows it.
        """
        check_continuations(self._config, prompts, continuations)
        rows = self._resolve(images, prompts)
        slots, longest = max(map(len, rows)) - 1, max(map(len, continuations))
        if slots + longest > self._config.total_tokens:
            # Aligned at the ends of their prompts, they need more slots than any of them has.
            half = len(rows) // 2
            parts = (slice(half), slice(half, None))
            return [
                found
                for part in parts
                for found in self.score(images, prompts[part], continuations[part])
            ]
        prefixes = [row[:-1] for row in rows]
        self._hold(prefixes, slots)
        texts = [
            [row[-1], *(self._num_kept + token for token in continuation[:-1])]
            for row, continuation in zip(rows, continuations, strict=True)
        ]
        lines = _aligned(prefixes, slots, self._config.total_tokens, texts)
        targets = np.zeros_like(lines)
        for line, continuation in zip(targets, continuations, strict=True):
            line[slots : slots + len(continuation)] = continuation
        scores = self._score_from(slots, longest, lines, targets)
        return [line[: len(text)] for line, text in zip(scores, texts, strict=True)]

    def embed(self, images: Array | None, prompt: Prompt) -> Array:
        """See :class:`execution.runs.Runs`."""
        rows = self._resolve(images, [prompt])
        self._set_source(np.array(rows))
        embeddings = self._of_one(self._run(RunKind.EMBED, len(rows[0]), result="embeddings"))
        return embeddings[: len(rows[0])].astype(np.float32)

    # -- from prompts to rows ---------------------------------------------------------------

    def _resolve(self, images: Array | None, prompts: Sequence[Prompt]) -> list[Rows]:
        """The rows of prompts, whose pictures and embeddings are kept from now on."""
        config, i = self._config, self._config.image_tokens
        pictures = self._host["image"][:0] if images is None else images_host(config, images)
        if len(prompts) > config.batch:
            raise UserError(f"{len(prompts)} prompts for micro_batch_size {config.batch}")
        check_prompts(config, prompts, len(pictures))
        items = dict.fromkeys(
            item for prompt in prompts for item in prompt if isinstance(item, Picture | Embedded)
        )
        shown = [item for item in items if isinstance(item, Picture)]
        given = [item for item in items if isinstance(item, Embedded)]
        contents = [pictures[item.index] for item in shown]
        contents += self._cut([item.rows for item in given])
        blocks = self._blocks.place(contents, self._fill)
        kept = [block * i + row for block in blocks for row in range(i)]
        rows_of: dict[Picture | Embedded, Rows] = {}
        for picture in shown:
            rows_of[picture], kept = kept[:i], kept[i:]
        for item in given:
            rows_of[item], kept = kept[: len(item.rows)], kept[len(item.rows) :]

        def rows(item: int | Picture | Embedded) -> Rows:
            if isinstance(item, Picture | Embedded):
                return rows_of[item]
            return [self._num_kept + item]

        return [[row for item in prompt for row in rows(item)] for prompt in prompts]

    def _cut(self, given: Sequence[Array]) -> list[Array]:
        """Blocks of (i, h) that hold one array of positions after the other."""
        if not given:
            return []
        template = self._host["rows"]
        joined = np.concatenate(given).astype(template.dtype)
        blocks = -(-len(joined) // len(template))
        padded = np.zeros((blocks * len(template), template.shape[1]), template.dtype)
        padded[: len(joined)] = joined
        return list(padded.reshape(blocks, *template.shape))

    def _fill(self, block: int, content: Array) -> None:
        """Keeps a picture (3, y, x) or positions (i, h)."""
        self._held = []
        name, kind = ("image", RunKind.ENCODE) if content.ndim == 3 else ("rows", RunKind.KEEP)
        self._host[name][...] = content
        self._run(kind, 0, block * self._config.image_tokens)

    # -- runs -------------------------------------------------------------------------------

    def _hold(self, prefixes: list[Rows], slots: int) -> None:
        """Has the cache hold prompts in its first slots, where it does not yet."""
        self._growing = 0
        held = max(map(len, self._held), default=0) == slots
        if not held or self._held[: len(prefixes)] != prefixes:
            self._prefill(prefixes)
            self._held = prefixes
        self._set_pads(prefixes, slots)

    def _prefill(self, rows: Sequence[Rows]) -> Array:
        """Reads prompts and returns the logits behind them; of empty ones they mean nothing.

        All at once, or one by one where that makes at most half of the work.
        """
        self._held, self._growing = [], 0
        sequences: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(rows):
            sequences.setdefault(tuple(row), []).append(number)
        slots = max(map(len, rows))
        if 2 * len(sequences) > self._config.batch:
            self._set_source(_aligned(rows, slots, slots))
            self._set_pads(rows, slots)
            return self._joined(self._run(RunKind.PREFILL, slots))[: len(rows)]
        vocabulary = self._config.transformer.embedding.vocab_size
        logits = np.zeros((len(rows), vocabulary), np.float32)
        for prompt, who in sequences.items():
            if prompt:
                logits[who] = self._prefill_shared(prompt, who, slots)
        self._set_pads(rows, slots)
        return logits

    def _prefill_shared(self, prompt: tuple[int, ...], who: list[int], slots: int) -> Array:
        """Reads a prompt for some sequences, so that it ends behind so many slots."""
        most = self._config.total_tokens
        # Whatever the longest prompt, this one costs what its own length needs.
        start = min(slots - len(prompt), most - bucket_of(len(prompt), prompt_buckets(most)))
        self._set_source(_aligned([prompt], slots - start, slots - start))
        self._host["pads"][0] = slots - start - len(prompt)
        self._host["sequences"][:] = who + who[-1:] * (self._config.batch - len(who))
        return self._joined(self._run(RunKind.SHARED_PREFILL, slots - start, start))[0]

    def _score_from(self, slots: int, longest: int, lines: Array, targets: Array) -> Array:
        """(n, longest) log-probabilities of the targets behind all slots from the first new one."""
        scores = np.empty((len(lines), longest), np.float32)
        for done in range(0, longest, self._score_lengths[-1]):
            count = min(self._score_lengths[-1], longest - done)
            m = bucket_of(count, self._score_lengths)
            # At the cache's end some slots are read once more.
            first = min(slots + done, self._config.total_tokens - m)
            window = slice(first, first + m)
            self._set_source(lines[:, window])
            self._targets[..., : len(lines), :m] = targets_host(self._config, targets[:, window])
            found = self._of_one(self._run(RunKind.SCORE, m, first, result="log_probs"))
            skip = slots + done - first
            scores[:, done : done + count] = found[: len(lines), skip : skip + count]
        return scores

    def _set_source(self, lines: Array) -> None:
        """Says what stands at the new slots (n, m) of n sequences."""
        n, m = lines.shape
        source = self._host["source"][:n, :m]
        words = lines >= self._num_kept
        ids = lines[words] - self._num_kept
        source[...] = lines
        source[words] = self._num_kept + np.arange(len(ids))
        self._set_words(ids)

    def _set_words(self, ids: Array) -> None:
        """Puts ids at the head of the stream."""
        self._words[..., : len(ids)] = words_host(self._config, ids)

    def _set_pads(self, rows: Sequence[Rows], slots: int) -> None:
        self._host["pads"][: len(rows)] = [slots - len(row) for row in rows]

    def _run(self, kind: RunKind, length: int, start: int = 0, result: str = "logits") -> Array:
        self._host["kind"][...], self._host["length"][...] = kind, length
        self._host["start"][0] = start
        with memory_and_files():
            return self._session.run(self._feeds)[getattr(self._session.outputs, result)]

    def _joined(self, logits: Array) -> Array:
        """(b, v) float32 of the replicas' columns."""
        if self._config.tensor_parallel > 1:
            logits = np.concatenate(list(logits), axis=-1)
        return logits.astype(np.float32)

    def _of_one(self, array: Array) -> Array:
        """What all replicas have."""
        return array[0] if self._config.tensor_parallel > 1 else array


def _aligned(
    rows: Sequence[Sequence[int]],
    slots: int,
    width: int,
    behind: Sequence[Sequence[int]] = (),
) -> Array:
    """(n, width): what stands at each slot if n prompts end behind so many, and others follow."""
    lines = np.full((len(rows), width), PAD)
    for line, row in zip(lines, rows, strict=True):
        line[slots - len(row) : slots] = row
    for line, row in zip(lines, behind, strict=False):
        line[slots : slots + len(row)] = row
    return lines
