"""The choice of the next token: pure functions of float32 logits, last axis the vocabulary.

Order: temperature 0 takes the largest logit and nothing else applies; otherwise the top-k filter,
the top-p filter, softmax of logits / temperature, and one draw. The filters see the logits as they
are: temperature acts after them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.errors import UserError

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; 1 draws by the model's probabilities; below 1
            sharper, above 1 flatter.
        top_k: draw among the k most probable tokens, a whole number; 0 for all.
        top_p: draw among the smallest set of tokens whose probability reaches p; 1 for all.
        seed: the same seed gives the same draws.
    """

    temperature: float = 0.7
    top_k: float = 0
    top_p: float = 0.9
    seed: int = 42

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            UserError: names the value that is out of its range.
        """
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; it must be 0 or greater")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must lie in 0..1")
        if self.top_k < 0 or not float(self.top_k).is_integer():
            raise UserError(f"top_k is {self.top_k}; it must be a whole number, 0 or greater")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie in 0..{2**32 - 1}")


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Probabilities of logits [..., v], in float64; -inf has probability 0."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def top_k_filter(logits: Logits, k: int) -> Logits:
    """Keep the k largest logits of each row, the others become -inf.

    Logits equal to the k-th largest are all kept. k = 0, or k of at least v, keeps everything.
    """
    vocabulary = logits.shape[-1]
    if k <= 0 or k >= vocabulary:
        return logits
    smallest_kept = np.partition(logits, vocabulary - k, axis=-1)[..., vocabulary - k, None]
    return np.where(logits < smallest_kept, np.float32(-np.inf), logits)


def top_p_filter(logits: Logits, p: float) -> Logits:
    """Keep the smallest set of tokens of each row whose probability reaches p (the nucleus).

    Tokens are ranked by probability, equal ones by id; a token is kept as long as those before it
    have less than p together. The first is always kept; p = 1 keeps everything.
    """
    if p >= 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(softmax(logits), order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    keep_ranked = before < p
    keep_ranked[..., 0] = True
    keep = np.empty_like(keep_ranked)
    np.put_along_axis(keep, order, keep_ranked, axis=-1)
    return np.where(keep, logits, np.float32(-np.inf))


def choose(
    logits: Logits, sampling: Sampling, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The next token of each row.

    Args:
        logits: [..., v].
        sampling: how to choose.
        generator: source of the draws; not used at temperature 0.

    Returns:
        ids [...], int64. Equal largest logits at temperature 0: the smallest id.

    Raises:
        UserError: a row has a NaN or no finite logit.
    """
    logits = np.asarray(logits, dtype=np.float32)
    if np.isnan(logits).any() or not np.isfinite(logits.max(axis=-1)).all():
        raise UserError(
            "the model's logits are not finite; with float16 weights this means an overflow: "
            "try --visual.precision float32 --transformer.precision float32"
        )
    if sampling.temperature == 0:
        return logits.argmax(axis=-1).astype(np.int64)
    kept = top_p_filter(top_k_filter(logits, int(sampling.top_k)), sampling.top_p)
    wide = kept.astype(np.float64)
    # Shifted first, so that a tiny temperature gives -inf below the largest and not inf - inf.
    with np.errstate(over="ignore"):
        scaled = (wide - wide.max(axis=-1, keepdims=True)) / sampling.temperature
    cumulated = np.cumsum(softmax(scaled), axis=-1)
    total = cumulated[..., -1:]
    draws = generator.random(cumulated.shape[:-1])[..., None] * total
    draws = np.minimum(draws, np.nextafter(total, 0))
    # The first token whose cumulated probability is above the draw: never one of probability 0.
    return (cumulated <= draws).sum(axis=-1)
