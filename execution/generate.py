"""The token loop: logits from runs of a session, choices from the host.

Letters: b sequences, i image tokens, v vocabulary of the head.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from execution.prompts import Array, Prompt, check_lengths, text_of, with_pictures
from execution.runs import MagmaSession, runs_of
from utils.sampling import Sampling, choose


@dataclass(frozen=True)
class Generation:
    """The result of one sequence.

    Attributes:
        prompt_ids: text ids that were given, pictures left out.
        generated_ids: new ids in order; the last is the end-of-text id if the sequence ended.
        logits: next-token logits of every step, [len(generated_ids), v] float32.
    """

    prompt_ids: list[int]
    generated_ids: list[int]
    logits: npt.NDArray[np.float32]


def generate(
    session: MagmaSession,
    config: MagmaConfig,
    image: Array | None,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    max_out_tokens: int,
    eos_id: int,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue prompts about pictures.

    Each sequence draws from a generator of its own, made of the seed and its index, so it does not
    depend on the others. A sequence stops at its end-of-text id or after max_out_tokens.

    Args:
        session: an entered session of either scheme with its weights written.
        config: the configuration that the session was built of.
        image: preprocessed pictures (b, 3, y, x), or (3, y, x) for one; None for text alone, which
            only the cached scheme takes.
        prompts: b lists of text ids, each continuing its own picture, which comes first; an empty
            list continues the picture alone. In the cached scheme a prompt may name pictures of
            its own, in any places, and there may be any number of pictures; if one does, no
            picture is put before the others.
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
    images, whole_prompts = with_pictures(config, image, prompts)
    runs = runs_of(session, config, pad_id=eos_id)
    batch = _Batch(prompts, eos_id)
    generators = [np.random.default_rng([sampling.seed, row]) for row in range(config.batch)]
    for step in _progress(max_out_tokens):
        logits = runs.step(batch.newest()) if step else runs.start(images, whole_prompts)
        for row in batch.unfinished():
            token = int(choose(logits[row], sampling, generators[row]))
            batch.append(row, token, logits[row])
            if on_token is not None:
                on_token(row, token)
        if not batch.unfinished():
            break
    return batch.results()


class _Batch:
    """What was generated for each of b sequences."""

    def __init__(self, prompts: Sequence[Prompt], eos_id: int) -> None:
        self._eos_id = eos_id
        self._prompts = [text_of(prompt) for prompt in prompts]
        self._new: list[list[int]] = [[] for _ in prompts]
        self._logits: list[list[Array]] = [[] for _ in prompts]

    def unfinished(self) -> list[int]:
        return [row for row, new in enumerate(self._new) if not new or new[-1] != self._eos_id]

    def append(self, row: int, token: int, logits: Array) -> None:
        self._new[row].append(token)
        self._logits[row].append(logits)

    def newest(self) -> list[int | None]:
        """The last token of each sequence; None for one that has ended."""
        return [None if new[-1] == self._eos_id else new[-1] for new in self._new]

    def results(self) -> list[Generation]:
        rows = zip(self._prompts, self._new, self._logits, strict=True)
        return [Generation(prompt, new, np.stack(logits)) for prompt, new, logits in rows]


def _progress(steps: int) -> Iterable[int]:
    if not sys.stderr.isatty():
        return range(steps)
    from tqdm import tqdm

    return tqdm(range(steps), desc="generating", unit="token", leave=False, file=sys.stderr)
