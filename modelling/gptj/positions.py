"""Where the rows of an activation stand in their sequences, and which positions they see.

Attention is the same whether it gets whole sequences or the next positions of growing ones; what
differs is a :class:`Place`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import popxl
from popxl import ops
from popxl_addons.ops.rotary_pos_embed import trig_tables

from config.config import GPTJConfig

Pair = tuple[popxl.Tensor, popxl.Tensor]


def _these_only(keys: popxl.Tensor, values: popxl.Tensor) -> Pair:
    return keys, values


@dataclass(frozen=True)
class Place:
    """What attention needs to know of b·m rows, m positions of each of b sequences.

    Attributes:
        b: Number of sequences.
        sin: (b·m, rotary_dim / 2), of the rows' positions.
        cos: As sin.
        visible: (b or 1, 1, m, k) bool: which of k keys each of m queries reads.
        remember: From the rows' own keys and values, (b, n/r, m, d), to all that may be read,
            (b, n/r, k, d).
    """

    b: int
    sin: popxl.Tensor
    cos: popxl.Tensor
    visible: popxl.Tensor
    remember: Callable[[popxl.Tensor, popxl.Tensor], Pair] = _these_only


def whole_sequences(config: GPTJConfig, s: int) -> Place:
    """The place of b whole sequences of s positions each: every one sees itself and earlier ones.

    Args:
        config: Of the language model.
        s: Positions of a sequence.
    """
    b = config.execution.micro_batch_size
    dtype = config.dtype
    sin, cos = (popxl.constant(np.tile(t, (b, 1)), dtype) for t in _tables(config, s))
    visible = np.tril(np.ones((1, 1, s, s), bool))
    return Place(b, sin, cos, popxl.constant(visible, popxl.bool, "visible"))


def growing_sequences(
    config: GPTJConfig, start: popxl.Tensor, pads: popxl.Tensor, m: int, k: int, limit: int
) -> tuple[popxl.Tensor, popxl.Tensor, popxl.Tensor]:
    """The place of m neighbouring slots of b sequences that are aligned at their ends.

    Slots before a sequence's first position are pads: nobody sees them, and what they see means
    nothing.

    Args:
        config: Of the language model.
        start: (1,) int32, the first of the m slots.
        pads: (b,) int32, pads of each sequence.
        m: Slots to place, all below k.
        k: Slots whose keys are read.
        limit: Most slots of any sequence.

    Returns:
        sin, cos and visible of a :class:`Place`.
    """
    b = pads.shape[0]
    slots = start + popxl.constant(np.arange(m), popxl.int32, "slots")  # (m,)
    pads = ops.reshape(pads, (b, 1))
    positions = ops.reshape(slots - pads, (b * m,))
    # Pads stand before position 0: out of the tables' range.
    sin, cos = (
        ops.gather(popxl.constant(table, config.dtype), positions, zero_OOR=True)
        for table in _tables(config, limit)
    )
    keys = popxl.constant(np.arange(k), popxl.int32, "keys")
    after_pads = ops.greater(keys + 1, pads)  # (b, k)
    not_later = ops.greater(ops.reshape(slots + 1, (m, 1)), keys)  # (m, k)
    visible = ops.logical_and(ops.reshape(after_pads, (b, 1, 1, k)), not_later)
    return sin, cos, visible


def _tables(config: GPTJConfig, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, rotary_dim / 2) sines and cosines, in the model's precision."""
    base = config.attention.rotary_positional_embeddings_base
    return _rounded_tables(positions, config.attention.rotary_dim, base, config.dtype.as_numpy())


@lru_cache(maxsize=4)  # Each length of a program asks for the same ones.
def _rounded_tables(
    positions: int, dim: int, base: int, dtype: npt.DTypeLike
) -> tuple[np.ndarray, np.ndarray]:
    # Rounding the angles would get them wrong by up to 0.4 rad in half precision: only their sines
    # and cosines are rounded.
    sin, cos = trig_tables(positions, dim, base, np_dtype="float64")
    return sin.astype(dtype), cos.astype(dtype)
