"""What outlives a run of the cached scheme: keys and values of all blocks, and given positions.

Letters: b sequences, S slots of a sequence, m slots of a run, k slots read, h hidden, n heads,
d head size, i image tokens, r replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import popxl
from popxl import ops

from config.config import MagmaConfig
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.positions import Place

Remember = Callable[..., tuple[popxl.Tensor, popxl.Tensor]]
"""From keys and values, and where they belong, to those that are attended to."""


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all blocks.

    Attributes:
        keys: Buffer of (b, n/r, S, d), with an entry for each block.
        values: As keys.
    """

    keys: popxl.RemoteBuffer
    values: popxl.RemoteBuffer

    @classmethod
    def of_config(cls, config: MagmaConfig) -> KeyValueCache:
        """A cache with a slot for each position, in the current Ir."""
        lm = config.transformer
        heads = lm.attention.heads // config.tensor_parallel
        shape = (config.batch, heads, config.total_tokens, lm.head_size)
        return cls(
            popxl.remote_buffer(shape, lm.dtype, lm.layers),
            popxl.remote_buffer(shape, lm.dtype, lm.layers),
        )

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
        return (
            write(self.keys, block, start, keys, axes=[2])[:, :, :k],
            write(self.values, block, start, values, axes=[2])[:, :, :k],
        )

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
        write(self.keys, block, place, keys, axes=[0, 2])
        write(self.values, block, place, values, axes=[0, 2])
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

        def give_one(
            turn: popxl.Tensor,
            sequences: popxl.Tensor,
            start: popxl.Tensor,
            block: popxl.Tensor,
            keys: popxl.Tensor,
            values: popxl.Tensor,
        ) -> popxl.Tensor:
            sequence = ops.dynamic_slice(sequences, turn, axes=[0], sizes=[1], no_overlap=True)
            place = ops.concat([sequence, start])
            write(self.keys, block, place, keys, axes=[0, 2])
            write(self.values, block, place, values, axes=[0, 2])
            return turn + 1

        turn = popxl.constant([0], popxl.int32, "turn")
        given = (turn, sequences, start, block, keys, values)
        ops.repeat(popxl.gcg().ir.create_graph(give_one, *given), sequences.shape[0], *given)
        return keys, values


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
