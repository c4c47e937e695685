"""The token loop of the recompute scheme: every token is one run over the whole padded sequence.

Letters: b sequences, t text positions, i image tokens, s = i + t, v vocabulary of the head,
r replicas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.errors import UserError
from utils.sampling import Sampling, choose

Array = npt.NDArray[Any]
Ids = Sequence[int]


class MagmaSession(Protocol):
    """What the loop needs of a session: streams words, image and logits, and a run."""

    @property
    def inputs(self) -> Any:
        """Streams words (b·t,) and image (b, 3, y, x) of one replica."""

    @property
    def outputs(self) -> Any:
        """Stream logits (b·s, v/r) of one replica."""

    def run(self, inputs: Any) -> Any:
        """Arrays of the output streams, leading axis r where there are several replicas."""


@dataclass(frozen=True)
class Generation:
    """The result of one sequence.

    Attributes:
        prompt_ids: text ids that were given.
        generated_ids: new ids in order; the last is the end-of-text id if the sequence ended.
        logits: next-token logits of every step, [len(generated_ids), v] float32.
    """

    prompt_ids: list[int]
    generated_ids: list[int]
    logits: npt.NDArray[np.float32]


def generate(
    session: MagmaSession,
    config: MagmaConfig,
    image: Array,
    prompts: Sequence[Ids],
    sampling: Sampling,
    max_out_tokens: int,
    eos_id: int,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue prompts about pictures, one run of the session a token.

    Each sequence draws from a generator of its own, made of the seed and its index, so it does not
    depend on the others. A sequence stops at its end-of-text id or after max_out_tokens.

    Args:
        session: an entered session of the recompute scheme with its weights written.
        config: the configuration that the session was built of.
        image: preprocessed pictures (b, 3, y, x), or (3, y, x) for one.
        prompts: b lists of text ids; an empty list continues the picture alone.
        sampling: how tokens are chosen.
        max_out_tokens: new tokens of a sequence at most.
        eos_id: end-of-text id, also used as padding.
        on_token: called with (sequence, id) for every new id.

    Returns:
        One result a sequence.

    Raises:
        UserError: sizes or values that do not fit; raised before the first run.
    """
    sampling.validate()
    check_lengths(config, prompts, max_out_tokens)
    batch = _Batch(config, prompts, eos_id)
    pictures = image_host(config, image)
    generators = [np.random.default_rng([sampling.seed, row]) for row in range(config.batch)]
    for _ in _progress(max_out_tokens):
        inputs = {session.inputs.words: batch.words(), session.inputs.image: pictures}
        outputs = session.run(inputs)[session.outputs.logits]
        for row in batch.unfinished():
            logits = next_logits(config, outputs, row, batch.length(row))
            token = int(choose(logits, sampling, generators[row]))
            batch.append(row, token, logits)
            if on_token is not None:
                on_token(row, token)
        if not batch.unfinished():
            break
    return batch.results()


def check_lengths(config: MagmaConfig, prompts: Sequence[Ids], max_out_tokens: int) -> None:
    """Check that prompts and new tokens fit the configuration.

    Raises:
        UserError: wrong number of prompts, an id that the embedding lacks, no room for a prompt or
            for the new tokens (with the number of tokens that are too many).
    """
    if max_out_tokens < 1:
        raise UserError(f"max_out_tokens is {max_out_tokens}; it must be 1 or greater")
    if len(prompts) != config.batch:
        raise UserError(f"{len(prompts)} prompts for micro_batch_size {config.batch}")
    room, rows = config.text_tokens, config.transformer.embedding.real_vocab_size
    for prompt in prompts:
        if any(not 0 <= token < rows for token in prompt):
            raise UserError(
                f"the prompt has token id {max(prompt)}, the word embedding has {rows} rows; "
                "the tokenizer does not belong to this model"
            )
        if len(prompt) > room:
            raise UserError(
                f"the prompt is {len(prompt) - room} tokens too long: it has {len(prompt)}, "
                f"transformer.sequence_length is {room}"
            )
        # The last new token is chosen but never read, so it needs no position.
        excess = len(prompt) + max_out_tokens - 1 - room
        if excess > 0:
            raise UserError(
                f"prompt and new tokens are {excess} tokens too long: {len(prompt)} of the prompt "
                f"and max_out_tokens {max_out_tokens} do not fit transformer.sequence_length {room}"
            )


def next_logits(config: MagmaConfig, outputs: Array, row: int, length: int) -> Array:
    """The next-token logits of one sequence out of what the session returned.

    Args:
        config: the configuration.
        outputs: logits (r, b·s, v/r), or (b·s, v) of one replica.
        row: index of the sequence.
        length: text ids in the sequence so far.

    Returns:
        [v] float32, the replicas' slices joined.
    """
    replicas, slots = config.tensor_parallel, config.batch * config.total_tokens
    slices = outputs.reshape(replicas, slots, config.transformer.embedding.vocab_size // replicas)
    position = row * config.total_tokens + config.image_tokens + length - 1
    return slices[:, position].reshape(-1).astype(np.float32)


class _Batch:
    """Ids of b sequences, padded on the right, and what was generated for each."""

    def __init__(self, config: MagmaConfig, prompts: Sequence[Ids], eos_id: int) -> None:
        self._config = config
        self._eos_id = eos_id
        self._prompts = [list(prompt) for prompt in prompts]
        self._new: list[list[int]] = [[] for _ in prompts]
        self._logits: list[list[Array]] = [[] for _ in prompts]
        # No output that is read depends on the padding; it only must be a row of the embedding.
        pad_id = min(eos_id, config.transformer.embedding.real_vocab_size - 1)
        self._ids = np.full((len(prompts), config.text_tokens), pad_id, dtype=np.int32)
        for row, prompt in enumerate(self._prompts):
            self._ids[row, : len(prompt)] = prompt

    def length(self, row: int) -> int:
        return len(self._prompts[row]) + len(self._new[row])

    def unfinished(self) -> list[int]:
        return [row for row, new in enumerate(self._new) if not new or new[-1] != self._eos_id]

    def append(self, row: int, token: int, logits: Array) -> None:
        position = self.length(row)
        self._new[row].append(token)
        self._logits[row].append(logits)
        if position < self._ids.shape[1]:
            self._ids[row, position] = token

    def words(self) -> Array:
        return words_host(self._config, self._ids)

    def results(self) -> list[Generation]:
        rows = zip(self._prompts, self._new, self._logits, strict=True)
        return [Generation(prompt, new, np.stack(logits)) for prompt, new, logits in rows]


def words_host(config: MagmaConfig, ids: Array) -> Array:
    """Ids as the replicas want them: counted from the first row of each replica's table.

    Args:
        config: the configuration.
        ids: [b, t] padded text ids.

    Returns:
        int32 (r, b·t), or (b·t,) of one replica. An id without a row in the word embedding (the
        head has more columns than the embedding rows) points at a row of zeros or at none.

    Raises:
        UserError: such an id, and the only replica's table has no row of zeros.
    """
    lm, replicas = config.transformer, config.tensor_parallel
    rows, rows_per_shard = lm.embedding.real_vocab_size, lm.embedding_rows_per_shard
    if replicas == 1 and rows == rows_per_shard and ids.max(initial=0) >= rows:
        raise UserError(f"token id {ids.max()} has no row in the word embedding of {rows} rows")
    flat = np.minimum(ids, rows).astype(np.int32).reshape(-1)
    offsets = np.arange(replicas, dtype=np.int32)[:, None] * np.int32(rows_per_shard)
    words = flat[None] - offsets
    return words if replicas > 1 else words[0]


def image_host(config: MagmaConfig, image: Array) -> Array:
    """Pictures as the replicas want them: the same ones for all, in the encoder's precision.

    Args:
        config: the configuration.
        image: preprocessed pictures (b, 3, y, x), or (3, y, x) for one.

    Returns:
        (r, b, 3, y, x), or (b, 3, y, x) of one replica.

    Raises:
        UserError: another number of pictures, or of another size.
    """
    side = config.visual.image_resolution
    expected = (config.batch, 3, side, side)
    pictures = image if image.ndim == 4 else image[None]
    if pictures.shape != expected:
        raise UserError(f"expected pictures of shape {expected}, found {image.shape}")
    pictures = pictures.astype(np.dtype(str(config.visual.precision)))
    if config.tensor_parallel == 1:
        return pictures
    # Rows of stride 0: the engine sees that they are equal without comparing them.
    return np.broadcast_to(pictures, (config.tensor_parallel, *expected))


def _progress(steps: int) -> Iterable[int]:
    if not sys.stderr.isatty():
        return range(steps)
    from tqdm import tqdm

    return tqdm(range(steps), desc="generating", unit="token", leave=False, file=sys.stderr)
