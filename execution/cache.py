"""What outlives a run of the cached scheme: keys and values of all blocks, and given positions.

Letters: b sequences, S slots of a sequence, m slots of a run, k slots read, h hidden, n heads,
d head size, i image tokens, r replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import popxl
from popxl import ops

from config.config import MagmaConfig
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.positions import Place

Remember = Callable[..., tuple[popxl.Tensor, popxl.Tensor]]
"""From keys and values, and where they belong, to those that are attended to."""

_INT8_MAX = 127
_LEAST_SCALE = 1e-30


@dataclass(frozen=True)
class Vectors:
    """A vector for each head and slot of each sequence, kept for every block.

    In int8 a vector is whole numbers, the largest of magnitude 127, and the float32 scale that they
    are multiplied by.

    Attributes:
        buffers: Of (b, n/r, S, d), with an entry for each block; in int8 also one of scales,
            (b, n/r, S, 1).
        dtype: Of what is kept and given back.
    """

    buffers: tuple[popxl.RemoteBuffer, ...]
    dtype: popxl.dtype

    @classmethod
    def of_config(cls, config: MagmaConfig) -> Vectors:
        """Room for each position of every sequence, in the current Ir."""
        lm = config.transformer
        heads = lm.attention.heads // config.tensor_parallel
        vectors = (config.batch, heads, config.total_tokens, lm.head_size)
        kept = lm.execution.kv_dtype or lm.precision
        buffers = [popxl.remote_buffer(vectors, getattr(popxl, str(kept)), lm.layers)]
        if kept == "int8":
            buffers.append(popxl.remote_buffer((*vectors[:3], 1), popxl.float32, lm.layers))
        return cls(tuple(buffers), lm.dtype)

    def pack(self, vectors: popxl.Tensor) -> list[popxl.Tensor]:
        """(any number, n/r, m, d) as they are kept, a tensor for each buffer."""
        if len(self.buffers) == 1:
            return [_cast(vectors, self.buffers[0].tensor_dtype)]
        vectors = _cast(vectors, popxl.float32)
        scales = ops.max(ops.abs(vectors), axis=-1, keepdims=True) * (1 / _INT8_MAX)
        scales = ops.maximum(scales, popxl.constant(_LEAST_SCALE, popxl.float32))
        return [ops.cast(ops.floor(vectors / scales + 0.5), popxl.int8), scales]

    def unpack(self, parts: Sequence[popxl.Tensor]) -> popxl.Tensor:
        """What :meth:`pack` was given, or nearly so."""
        vectors, *scales = (_cast(part, self.dtype) for part in parts)
        return vectors * scales[0] if scales else vectors

    def write(
        self,
        block: popxl.Tensor,
        start: popxl.Tensor,
        parts: Sequence[popxl.Tensor],
        axes: list[int],
    ) -> list[popxl.Tensor]:
        """Replaces windows of a block's entries: see :func:`write`; the parts are packed."""
        return [
            write(buffer, block, start, part, axes)
            for buffer, part in zip(self.buffers, parts, strict=True)
        ]


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all blocks."""

    keys: Vectors
    values: Vectors

    @classmethod
    def of_config(cls, config: MagmaConfig) -> KeyValueCache:
        """A cache with a slot for each position, in the current Ir."""
        return cls(Vectors.of_config(config), Vectors.of_config(config))

    def remember(
        self,
        keys: popxl.Tensor,
        values: popxl.Tensor,
        start: popxl.Tensor,
        block: popxl.Tensor,
        k: int,
    ) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Writes to neighbouring slots of all sequences, then reads the first k.

        Args:
            keys: (b, n/r, m, d).
            values: As keys.
            start: (1,) int32, the first slot to write.
            block: () int32, whose keys and values they are.
            k: Slots to read.

        Returns:
            Keys and values, (b, n/r, k, d) each.
        """

        def renewed(kept: Vectors, vectors: popxl.Tensor) -> popxl.Tensor:
            parts = kept.write(block, start, kept.pack(vectors), axes=[2])
            return kept.unpack([part[:, :, :k] for part in parts])

        return renewed(self.keys, keys), renewed(self.values, values)

    def fill(
        self,
        keys: popxl.Tensor,
        values: popxl.Tensor,
        first: popxl.Tensor,
        block: popxl.Tensor,
    ) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Writes to the first slots of neighbouring sequences.

        Args:
            keys: (any number, n/r, m, d).
            values: As keys.
            first: (1,) int32, the first of the sequences.
            block: () int32.

        Returns:
            The same keys and values: nothing else is in those slots.
        """
        place = ops.concat([first, popxl.constant([0], popxl.int32, "slot")])
        for kept, vectors in ((self.keys, keys), (self.values, values)):
            kept.write(block, place, kept.pack(vectors), axes=[0, 2])
        return keys, values

    def give(
        self,
        keys: popxl.Tensor,
        values: popxl.Tensor,
        sequences: popxl.Tensor,
        start: popxl.Tensor,
        block: popxl.Tensor,
    ) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Writes the same to neighbouring slots of some sequences.

        Args:
            keys: (1, n/r, m, d).
            values: As keys.
            sequences: (b,) int32, who gets them; may name a sequence more than once.
            start: See :meth:`remember`, as for the next.
            block: () int32.

        Returns:
            The same keys and values: who has one prompt sees nothing else.
        """
        number = len(self.keys.buffers)

        def give_one(
            turn: popxl.Tensor,
            sequences: popxl.Tensor,
            start: popxl.Tensor,
            block: popxl.Tensor,
            parts: list[popxl.Tensor],
        ) -> popxl.Tensor:
            sequence = ops.dynamic_slice(sequences, turn, axes=[0], sizes=[1], no_overlap=True)
            place = ops.concat([sequence, start])
            self.keys.write(block, place, parts[:number], axes=[0, 2])
            self.values.write(block, place, parts[number:], axes=[0, 2])
            return turn + 1

        turn = popxl.constant([0], popxl.int32, "turn")
        parts = [*self.keys.pack(keys), *self.values.pack(values)]
        given = (turn, sequences, start, block)
        turns = popxl.gcg().ir.create_graph(give_one, *given, parts)
        ops.repeat(turns, sequences.shape[0], *given, *parts)
        return keys, values


def _cast(tensor: popxl.Tensor, dtype: popxl.dtype) -> popxl.Tensor:
    return tensor if tensor.dtype == dtype else ops.cast(tensor, dtype)


def write(
    buffer: popxl.RemoteBuffer,
    entry: popxl.Tensor,
    start: popxl.Tensor,
    window: popxl.Tensor,
    axes: list[int],
) -> popxl.Tensor:
    """Replaces a window of an entry of a buffer.

    Args:
        buffer: Where.
        entry: () int32.
        start: (number of axes,) int32, where the window begins on each of the axes.
        window: As large as the entry, but for the axes.
        axes: On which it is smaller.

    Returns:
        The whole entry.
    """
    # Between these three nothing touches the entry, so an engine may do them in place.
    whole = ops.remote_load(buffer, entry)
    sizes = [window.shape[axis] for axis in axes]
    ops.dynamic_update_(whole, start, window, axes=axes, sizes=sizes, no_overlap=True)
    ops.remote_store(buffer, entry, whole)
    return whole


class CachedBlock(DecoderBlock):
    """A decoder block whose keys and values are remembered."""

    def __init__(self, config: MagmaConfig, remember: Remember):
        """Fixes the sizes.

        Args:
            config: Of the whole model.
            remember: What to do with keys and values; which to attend to.
        """
        super().__init__(config.transformer)
        self.remember = remember

    # A graph's inputs are tensors, so the parts of the place come one by one.
    def build(  # type: ignore[override]
        self,
        x: popxl.Tensor,
        sin: popxl.Tensor,
        cos: popxl.Tensor,
        visible: popxl.Tensor,
        *where: popxl.Tensor,
    ) -> popxl.Tensor:
        """One block over m slots of some sequences.

        Args:
            x: (b·m, h), equal on all replicas.
            sin: See :class:`modelling.gptj.positions.Place`, as for the next two.
            cos: (b·m, rotary_dim / 2).
            visible: (b, 1, m, k).
            where: What ``remember`` takes behind keys and values, the number of the block last.

        Returns:
            (b·m, h), equal on all replicas.
        """

        def remember(keys: popxl.Tensor, values: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return self.remember(keys, values, *where)

        return super().build(x, Place(visible.shape[0], sin, cos, visible, remember))


@dataclass(frozen=True)
class KeptRows:
    """Positions that prompts may be made of, besides words: of pictures, or given by the host.

    Attributes:
        table: Buffer of one entry, (blocks · i, h).
    """

    table: popxl.RemoteBuffer

    @classmethod
    def of_config(cls, config: MagmaConfig) -> KeptRows:
        """A table with room for whatever a batch of prompts can hold, in the current Ir."""
        lm = config.transformer
        shape = (kept_blocks(config) * config.image_tokens, lm.hidden_size)
        return cls(popxl.remote_buffer(shape, lm.dtype, 1))

    def keep(self, rows: popxl.Tensor, start: popxl.Tensor) -> None:
        """Keeps (i, h) from a row (1,) int32 on."""
        write(self.table, popxl.constant(0, popxl.int32, "entry"), start, rows, axes=[0])

    def load(self) -> popxl.Tensor:
        """All of them."""
        return ops.remote_load(self.table, 0)


def kept_blocks(config: MagmaConfig) -> int:
    """How many blocks of i positions are kept: a picture takes one."""
    return -(-config.batch * config.total_tokens // config.image_tokens)
