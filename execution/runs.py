"""What runs of a session give: next-token logits, first behind prompts, then token by token.

Letters: b sequences, t text positions, i image tokens, s = i + t, v vocabulary of the head,
r replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from utils.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """Where a prompt has a picture.

    Attributes:
        index: which of the pictures that come with the prompts.
    """

    index: int


Prompt = Sequence["int | Picture"]


class MagmaSession(Protocol):
    """What runs need of a session."""

    @property
    def inputs(self) -> Any:
        """Input streams of one replica."""

    @property
    def outputs(self) -> Any:
        """Stream logits of one replica."""

    def run(self, inputs: Any) -> Any:
        """Arrays of the output streams, leading axis r where there are several replicas."""


class Runs(Protocol):
    """The runs that continue b prompts."""

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """Begins anew.

        Args:
            images: preprocessed pictures, (any number, 3, y, x).
            prompts: b prompts.

        Returns:
            [b, v] float32, the logits of the token behind each prompt.

        Raises:
            UserError: prompts or pictures that the scheme cannot take; raised before the first run.
        """

    def step(self, tokens: Sequence[int | None]) -> Array:
        """Appends a token to each sequence; None to one that has ended.

        Returns:
            [b, v] float32, the logits of the next token. Those of ended sequences mean nothing.
        """


def runs_of(session: MagmaSession, config: MagmaConfig, pad_id: int) -> Runs:
    """The runs of a session of either scheme.

    Args:
        session: an entered session with its weights written.
        config: the configuration that the session was built of.
        pad_id: id that fills unused text positions.
    """
    # Only the cached scheme must be told what a run is to do.
    if hasattr(session.inputs, "kind"):
        from execution.cached_runs import CachedRuns

        return CachedRuns(session, config)
    return RecomputeRuns(session, config, pad_id)


class RecomputeRuns:
    """Every token is one run over the whole padded sequence, picture included."""

    def __init__(self, session: MagmaSession, config: MagmaConfig, pad_id: int) -> None:
        """See :func:`runs_of`."""
        self._session = session
        self._config = config
        # No output that is read depends on the padding; it only must be a row of the embedding.
        pad_id = min(pad_id, config.transformer.embedding.real_vocab_size - 1)
        self._ids = np.full((config.batch, config.text_tokens), pad_id, dtype=np.int32)
        self._lengths = [0] * config.batch

    def start(self, images: Array | None, prompts: Sequence[Prompt]) -> Array:
        """See :class:`Runs`. Each prompt is its own picture and then text."""
        if images is None or len(images) != self._config.batch:
            raise UserError(
                f"the recompute scheme needs {self._config.batch} pictures, one before each text, "
                f"not {0 if images is None else len(images)}; use the cached scheme"
            )
        self._image_host = image_host(self._config, images)
        for row, prompt in enumerate(prompts):
            ids = [item for item in prompt if not isinstance(item, Picture)]
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

    def _logits(self) -> Array:
        inputs = self._session.inputs
        words = words_host(self._config, self._ids)
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
    pictures = images_host(config, image if image.ndim == 4 else image[None])
    if len(pictures) != config.batch:
        raise UserError(f"{len(pictures)} pictures for micro_batch_size {config.batch}")
    return on_replicas(config, pictures)


def images_host(config: MagmaConfig, images: Array) -> Array:
    """Pictures (any number, 3, y, x) in the encoder's precision.

    Raises:
        UserError: they have another shape.
    """
    side = config.visual.image_resolution
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        expected = (config.batch, 3, side, side)
        raise UserError(f"expected pictures of shape {expected}, found {images.shape}")
    return images.astype(np.dtype(str(config.visual.precision)))


def on_replicas(config: MagmaConfig, array: Array) -> Array:
    """The same array for every replica: a leading axis r where there are several."""
    if config.tensor_parallel == 1:
        return array
    # Rows of stride 0: the engine sees that they are equal without comparing them.
    return np.broadcast_to(array, (config.tensor_parallel, *array.shape))
