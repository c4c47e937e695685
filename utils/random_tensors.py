"""Random numbers for every tensor of a checkpoint, drawn when they are asked for.

Numbers are drawn by seed and name, so any tensor can be drawn again alone, and the float16 and
bfloat16 numbers of a seed are the roundings of its float32 ones. They are scaled so that
activations stay finite in float16 through all layers, and every tensor matters: batch-norm
statistics, biases and adapters are not at their usual initial values, and the logits depend on the
picture and on every token.

A value is one of 65,536 quantiles of the normal distribution, picked by 16 random bits: that is
seven times faster than drawing normals, and 6.4 billion are needed for the full model.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from utils.checkpoint_layout import PUBLISHED_POSITIONS, Kind, TensorEntry, expected_tensors

if TYPE_CHECKING:
    from config.config import MagmaConfig

Array = npt.NDArray[Any]

_CHUNK = 1 << 16  # values drawn at once; fits the processor's cache
_BUFFER = 1 << 20  # values handed out at once


class RandomTensors(Mapping[str, Array]):
    """The tensors of a random checkpoint by canonical name: what the writer writes, and a stand-in.

    Attributes:
        entries: the tensors' rows of the layout table.
    """

    def __init__(
        self,
        config: MagmaConfig,
        seed: int = 0,
        dtype: str = "float32",
        positions: int = PUBLISHED_POSITIONS,
    ) -> None:
        """Draws nothing yet.

        Args:
            config: sizes of the model.
            seed: numbers differ between seeds and are the same on every machine.
            dtype: "float16", "float32" or "bfloat16", whose bits come in uint16.
            positions: size of the causal masks and of the sine and cosine tables.
        """
        self.entries = expected_tensors(config, positions=positions)
        self._seed = seed
        self._dtype = dtype
        self._score_scale = math.sqrt(config.transformer.head_size)

    def __getitem__(self, name: str) -> Array:
        """The array of a canonical name: new and read-only."""
        entry = self.entries[name]
        # Copies, because a piece is valid only until the next one.
        flat = np.concatenate([piece.copy() for piece in self.pieces(name)])
        # Before there is a view of it, so that the view is read-only all the way down.
        flat.flags.writeable = False
        return flat.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        """Canonical names in the published order."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.entries)

    def pieces(self, name: str) -> Iterator[Array]:
        """The flat values of one tensor; a drawn piece is overwritten by the next."""
        entry = self.entries[name]
        if entry.kind is Kind.COUNTER:
            yield np.full(1, 150_000, np.int64)
        elif name.endswith(".scale_attn"):
            yield _encode(np.full(1, self._score_scale, np.float32), self._dtype)
        elif entry.kind is Kind.RECOMPUTABLE:
            yield _buffer_values(name, entry, self._dtype).reshape(-1)
        else:
            table = _quantiles(*_distribution(name, entry), self._dtype)
            yield from _draw(name, self._seed, math.prod(entry.shape), table)


# Centre and spread of vectors, and of the embedding; the first pattern that matches holds.
# Quantiles end at ±4.2, so variances stay positive.
_VECTORS = (
    (re.compile(r"running_var$"), 1.0, 0.15),
    (re.compile(r"(bias|running_mean)$"), 0.0, 0.05),
    (re.compile(r"wte\.weight$"), 0.0, 1.0),
    (re.compile(r"\.layer\d\.\d+\.bn3\.weight$"), 0.4, 0.1),  # forty blocks are summed
)

# Matrices keep the scale of what they multiply (spread 1/√fan-in) but for these gains: convolutions
# before a ReLU, which halves; attention sharp enough that single tokens and image positions tell
# in the logits; MLPs small beside the residual stream, so that these differences survive.
_GAINS = (
    (re.compile(r"\.enc\.conv\d\.|\.layer\d\.\d+\.conv[12]\."), math.sqrt(2)),
    (re.compile(r"\.[qk]_proj\."), 2.2),
    (re.compile(r"\.(c_proj|adapter\.[23])\.weight$"), 0.5),
    (re.compile(r"^lm\.lm_head\."), 2.0),
)


def _distribution(name: str, entry: TensorEntry) -> tuple[float, float]:
    """Centre and standard deviation of a tensor's values."""
    for pattern, centre, spread in _VECTORS:
        if pattern.search(name):
            return centre, spread
    if len(entry.shape) == 1:  # scales: of norms and of adapters
        return 1.0, 0.1
    gain = next((gain for pattern, gain in _GAINS if pattern.search(name)), 1.0)
    return 0.0, gain / math.sqrt(math.prod(entry.shape[1:]))


@lru_cache(maxsize=1)
def _normal_quantiles() -> npt.NDArray[np.float64]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)])


@lru_cache(maxsize=64)
def _quantiles(centre: float, spread: float, dtype: str) -> Array:
    return _encode((centre + spread * _normal_quantiles()).astype(np.float32), dtype)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> Array:
    """Rounds to the stored type; bfloat16, which numpy lacks, becomes its bits in uint16."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _draw(name: str, seed: int, count: int, table: Array) -> Iterator[Array]:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    source = np.random.SFC64(int.from_bytes(digest, "little"))
    buffer = np.empty(min(count, _BUFFER), table.dtype)
    for start in range(0, count, _BUFFER):
        piece = buffer[: min(_BUFFER, count - start)]
        for i in range(0, piece.size, _CHUNK):
            target = piece[i : i + _CHUNK]
            raw = np.atleast_1d(source.random_raw(-(-target.size // 4)))
            picks = raw.astype("<u8", copy=False).view("<u2")[: target.size]
            # "clip" skips a range check; 16 bits cannot leave a table of 65,536.
            np.take(table, picks, out=target, mode="clip")
        yield piece


def _buffer_values(name: str, entry: TensorEntry, dtype: str) -> Array:
    """What the original model's constructor puts into its buffers."""
    last = name.rpartition(".")[2]
    if last == "bias":
        return np.tril(np.ones(entry.shape[-2:], np.bool_))
    if last in ("sin", "cos"):
        positions, pairs = entry.shape
        rates = 10000.0 ** (-np.arange(pairs) / pairs)
        angles = np.arange(positions)[:, None] * rates
        return _encode(getattr(np, last)(angles).astype(np.float32), dtype)
    with np.errstate(over="ignore"):  # −1e9 is −inf in float16, as in the published file
        return _encode(np.full(1, -1e9, np.float32), dtype)
