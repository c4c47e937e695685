"""What runs of a session give: next-token logits, first behind prompts, then token by token.

Letters: b sequences, t text positions, i image tokens, s = i + t, v vocabulary of the head,
r replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary, proxy

import numpy as np

from config.config import MagmaConfig
from execution.engine import memory_and_files
from execution.prompts import Array, Ids, Picture, Prompt, images_host, text_of
from utils.errors import UserError


class MagmaSession(Protocol):
    """What runs need of a session."""

    @property
    def inputs(self) -> Any:
        """Input streams of one replica."""

    @property
    def outputs(self) -> Any:
        """Output streams of one replica, logits among them."""

    def run(self, inputs: Any) -> Any:
        """Arrays of the output streams, leading axis r where there are several replicas."""


class Runs(Protocol):
    """What one run after the other does with up to b prompts.

    Prompts are laid out and checked here for what would not fit the session; whether new tokens fit
    is for :func:`execution.prompts.check_lengths`. Pictures are preprocessed: (number, 3, y, x).
    """

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """Begins anew with n prompts, at most b.

        Args:
            images: the pictures that prompts name; None for none.
            prompts: each of at least one position. Equal ones are read once where that is less
                work.

        Returns:
            [n, v] float32, the logits of the token behind each prompt.

        Raises:
            UserError: prompts or pictures that the scheme cannot take; raised before the first run.
        """

    def step(self, tokens: Sequence[int | None]) -> Array:
        """Appends a token to each of the n sequences of the last start; None to one that has ended.

        Returns:
            [n, v] float32, the logits of the next token. Those of ended sequences mean nothing.

        Raises:
            UserError: no position is left, or something else was run since the start.
        """

    def score(
        self,
        images: Array | None,
        prompts: Sequence[Prompt],
        continuations: Sequence[Ids],
    ) -> list[Array]:
        """Log-probabilities of given continuations of n prompts, at most b.

        Equal prompts are read as in :meth:`start`; those of the last call, if they are the same
        again, not at all.

        Args:
            images: see :meth:`start`, as for the next.
            prompts: n prompts.
            continuations: n lists of one or more ids.

        Returns:
            For each, [len(continuation)] float32: the logarithm of each id's probability behind the
            prompt and the ids before it.

        Raises:
            UserError: see :meth:`start`; or the scheme has no such run.
        """

    def embed(self, images: Array | None, prompt: Prompt) -> Array:
        """What the language model gets of a prompt.

        Returns:
            [positions, h] float32, which :class:`execution.prompts.Embedded` takes.

        Raises:
            UserError: see :meth:`score`.
        """


_CACHED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def runs_of(session: MagmaSession, config: MagmaConfig, pad_id: int = 0) -> Runs:
    """The runs of a session of either scheme.

    What the cached scheme's session holds (pictures, prompts) is known to one object only, which
    everyone gets as long as there is the session. So pictures are not encoded again from call to
    call. The runs do not keep their session.

    Args:
        session: an entered session with its weights written.
        config: the configuration that the session was built of.
        pad_id: id that fills unused text positions of the recompute scheme.
    """
    # Only the cached scheme must be told what a run is to do.
    if not hasattr(session.inputs, "kind"):
        return RecomputeRuns(session, config, pad_id)
    from execution.cached_runs import CachedRuns

    runs = _CACHED.get(session)
    if runs is None:
        runs = _CACHED[session] = CachedRuns(proxy(session), config)
    return runs


class RecomputeRuns:
    """Every token is one run over the whole padded sequence, picture included."""

    def __init__(self, session: MagmaSession, config: MagmaConfig, pad_id: int) -> None:
        """See :func:`runs_of`."""
        self._session = session
        self._config = config
        # No output that is read depends on the padding; it only must be a row of the embedding.
        pad_id = min(pad_id, config.transformer.embedding.real_vocab_size - 1)
        self._ids = np.full((config.batch, config.text_tokens), pad_id, dtype=np.int32)
        self._lengths: list[int] = []

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """See :class:`Runs`. Each prompt is its own picture and then text."""
        batch = self._config.batch
        if not 1 <= len(prompts) <= batch:
            raise UserError(f"{len(prompts)} prompts for a session of micro_batch_size {batch}")
        if images is None or len(images) != len(prompts):
            raise UserError(
                f"the recompute scheme needs {len(prompts)} pictures, one before each text, "
                f"not {0 if images is None else len(images)}; use the cached scheme"
            )
        # What runs beside the prompts is never read.
        rows = [*range(len(prompts)), *[0] * (batch - len(prompts))]
        self._image_host = image_host(self._config, images[rows])
        self._lengths = [0] * len(prompts)
        for row, prompt in enumerate(prompts):
            ids = text_of(prompt)
            if list(prompt) != [Picture(row), *ids]:
                raise UserError(
                    "the recompute scheme takes prompts of one picture and then text only; use the "
                    "cached scheme for others"
                )
            self._ids[row, : len(ids)] = ids
            self._lengths[row] = len(ids)
        return self._logits()

    def step(self, tokens: Sequence[int | None]) -> Array:
        """See :class:`Runs`."""
        for row, token in enumerate(tokens):
            if token is not None:
                self._ids[row, self._lengths[row]] = token
                self._lengths[row] += 1
        return self._logits()

    def score(
        self,
        images: Array | None,
        prompts: Sequence[Prompt],
        continuations: Sequence[Ids],
    ) -> list[Array]:
        """See :class:`Runs`."""
        raise UserError("the recompute scheme does not score; use the cached scheme")

    def embed(self, images: Array | None, prompt: Prompt) -> Array:
        """See :class:`Runs`."""
        raise UserError("the recompute scheme gives no embeddings; use the cached scheme")

    def _logits(self) -> Array:
        inputs = self._session.inputs
        words = words_host(self._config, self._ids)
        with memory_and_files():
            outputs = self._session.run({inputs.words: words, inputs.image: self._image_host})
        logits = outputs[self._session.outputs.logits]
        rows = enumerate(self._lengths)
        return np.stack([next_logits(self._config, logits, row, n) for row, n in rows])


def next_logits(config: MagmaConfig, outputs: Array, row: int, length: int) -> Array:
    """The next-token logits of one sequence out of what a recompute session returned.

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


def words_host(config: MagmaConfig, ids: Array) -> Array:
    """Ids as the replicas want them: counted from the first row of each replica's table.

    Args:
        config: the configuration.
        ids: integers, of any shape with n elements.

    Returns:
        int32 (r, n), or (n,) of one replica. An id without a row in the word embedding (the head
        has more columns than the embedding rows) points at a row of zeros or at none.

    Raises:
        UserError: such an id, and the only replica's table has no row of zeros.
    """
    lm = config.transformer
    rows, rows_per_shard = lm.embedding.real_vocab_size, lm.embedding_rows_per_shard
    if config.tensor_parallel == 1 and rows == rows_per_shard and ids.max(initial=0) >= rows:
        raise UserError(f"token id {ids.max()} has no row in the word embedding of {rows} rows")
    return _counted_from(rows_per_shard, config, np.minimum(ids, rows).reshape(-1))


def targets_host(config: MagmaConfig, ids: Array) -> Array:
    """Ids to score as the replicas want them: counted from each replica's first column of the head.

    Args:
        config: the configuration.
        ids: integers, of any shape.

    Returns:
        int32 (r, *shape), or (*shape) of one replica.
    """
    columns = config.transformer.embedding.vocab_size // config.tensor_parallel
    return _counted_from(columns, config, ids)


def _counted_from(per_replica: int, config: MagmaConfig, ids: Array) -> Array:
    replicas = config.tensor_parallel
    if replicas == 1:
        return ids.astype(np.int32)
    offsets = np.arange(replicas, dtype=np.int32) * np.int32(per_replica)
    return ids.astype(np.int32) - offsets.reshape(-1, *[1] * ids.ndim)


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
    pictures = images_host(config, image if image.ndim == 4 else image[None])
    if len(pictures) != config.batch:
        raise UserError(f"{len(pictures)} pictures for micro_batch_size {config.batch}")
    return on_replicas(config, pictures)


def on_replicas(config: MagmaConfig, array: Array) -> Array:
    """The same array for every replica: a leading axis r where there are several."""
    if config.tensor_parallel == 1:
        return array
    # Rows of stride 0: the engine sees that they are equal without comparing them.
    return np.broadcast_to(array, (config.tensor_parallel, *array.shape))
