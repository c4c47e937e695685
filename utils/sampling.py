"""The choice of the next token: pure functions of float32 logits, last axis the vocabulary.

Order: first the adjustments (repetition penalty, forbidden tokens, logits processors). Then
temperature 0 takes the largest logit and nothing else applies; otherwise the top-k filter, the
top-p filter, softmax of logits / temperature, and one draw. The filters see the adjusted logits as
they are: temperature acts after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.errors import UserError

Logits = npt.NDArray[np.float32]

Processor = Callable[[Any, Any], Any]
"""A logits processor of transformers: ids (1, n) and logits (1, v), torch tensors, to logits."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; 1 draws by the model's probabilities; below 1
            sharper, above 1 flatter.
        top_k: draw among the k most probable tokens, a whole number; 0 for all.
        top_p: draw among the smallest set of tokens whose probability reaches p; 1 for all.
        seed: the same seed gives the same draws.
        top_p_mode: a name of TOP_P_FILTERS. "nucleus" is what top_p says; "magma" is the filter of
            the original MAGMA, which hardly filters.
        repetition_penalty: logits of tokens that the text has are divided by it where positive and
            multiplied by it where negative; 1 for none.
        processors: applied to the logits in this order, before the filters.
    """

    temperature: float = 0.7
    top_k: float = 0
    top_p: float = 0.9
    seed: int = 42
    top_p_mode: str = "nucleus"
    repetition_penalty: float = 1.0
    processors: tuple[Processor, ...] = ()

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
        if self.top_p_mode not in TOP_P_FILTERS:
            known = " or ".join(TOP_P_FILTERS)
            raise UserError(f"top_p_mode is {self.top_p_mode!r}; it must be {known}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; it must be greater than 0"
            )


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Probabilities of logits [..., v], in float64; -inf has probability 0."""
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Natural logarithms of the probabilities of logits [..., v], in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def most_probable(log_probs: npt.NDArray[np.floating], count: int) -> list[tuple[int, float]]:
    """The ids [v] with the largest log-probabilities and those, in descending order."""
    count = min(count, len(log_probs))
    if count < 1:
        return []
    largest = np.argpartition(-log_probs, count - 1)[:count]
    return [(int(token), float(log_probs[token])) for token in largest[_order(log_probs[largest])]]


def _order(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    return np.argsort(-values, axis=-1, kind="stable")


def repetition_penalty(logits: Logits, ids: Sequence[int], penalty: float) -> Logits:
    """Makes the tokens of a text less probable (penalty > 1) or more (penalty < 1).

    Args:
        logits: [v].
        ids: the text. Ids without a logit are passed over.
        penalty: Keskar et al. 2019, section 4.1, as transformers applies it: positive logits are
            divided by it, negative ones multiplied by it.
    """
    if penalty == 1:
        return logits
    seen = np.array([token for token in set(ids) if token < len(logits)], np.int64)
    penalised, values = logits.copy(), logits[seen]
    range_of = np.finfo(np.float32)
    largest = float(range_of.max)
    factor = np.float32(min(max(penalty, float(range_of.tiny)), largest))
    # However extreme the penalty, a finite logit stays one.
    with np.errstate(over="ignore"):
        changed = np.where(values < 0, values * factor, values / factor)
    limit = np.where(np.isfinite(values), largest, np.inf)
    penalised[seen] = np.clip(changed, -limit, limit)
    return penalised


def adjust(
    logits: Logits, sampling: Sampling, ids: Sequence[int], forbidden: Collection[int] = ()
) -> Logits:
    """What comes before the choice: repetition penalty, forbidden tokens, processors.

    Args:
        logits: [v], as the model gives them.
        sampling: how to choose.
        ids: the text so far, prompt included and pictures left out.
        forbidden: ids that must not be chosen now.

    Returns:
        [v].

    Raises:
        UserError: no token is left to choose, or processors make NaN of numbers.
    """
    adjusted = repetition_penalty(logits, ids, sampling.repetition_penalty)
    if forbidden:
        adjusted = adjusted.copy()
        adjusted[[token for token in forbidden if token < len(adjusted)]] = -np.inf
    if sampling.processors:
        adjusted = _processed(adjusted, sampling.processors, ids)
    if adjusted is not logits and not np.isnan(logits).any():
        if np.isnan(adjusted).any():
            raise UserError("the logits processors give NaN; leave some of them out")
        if adjusted.max() == -np.inf:
            raise UserError("the logits processors leave no token to choose; leave some out")
    return adjusted


def _processed(logits: Logits, processors: Sequence[Processor], ids: Sequence[int]) -> Logits:
    import torch

    # A processor may write to what it is given.
    scores = torch.tensor(logits[None])
    text = torch.tensor([list(ids)], dtype=torch.int64)
    with torch.no_grad():
        for processor in processors:
            scores = processor(text, scores)
            if getattr(scores, "shape", None) != (1, len(logits)):
                found = tuple(getattr(scores, "shape", ())) or type(scores).__name__
                raise UserError(
                    f"{processor!r} is no logits processor: it returns {found}; expected logits "
                    f"(1, {len(logits)})"
                )
    return scores[0].float().numpy()


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
    return _filtered_by_rank(logits, lambda before: before < p)


def magma_top_p_filter(logits: Logits, p: float) -> Logits:
    """The filter that the original MAGMA calls top-p, for comparisons with it.

    It keeps the most probable token and, of the others, those before which there is at least
    1 - p: so it removes tokens near the top and keeps all improbable ones. p = 0 keeps everything.
    """
    if p <= 0:
        return logits
    return _filtered_by_rank(logits, lambda before: before >= 1 - p)


TOP_P_FILTERS: dict[str, Callable[[Logits, float], Logits]] = {
    "nucleus": top_p_filter,
    "magma": magma_top_p_filter,
}
"""Meanings of top_p by the name of the mode."""


def _filtered_by_rank(
    logits: Logits, keeps: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
) -> Logits:
    """Keeps tokens by the probability of all that are ranked before them, and always the first."""
    order = _order(logits)
    ranked = np.take_along_axis(softmax(logits), order, axis=-1)
    keep_ranked = keeps(np.cumsum(ranked, axis=-1) - ranked)
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
    top_p = TOP_P_FILTERS[sampling.top_p_mode]
    kept = top_p(top_k_filter(logits, int(sampling.top_k)), sampling.top_p)
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
