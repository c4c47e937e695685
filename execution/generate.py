"""The token loop: logits from runs of a session, choices from the host.

Letters: b sequences, i image tokens, v vocabulary of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from execution.prompts import Array, Prompt, check_lengths, text_of, with_pictures
from execution.runs import MagmaSession, Runs, runs_of
from utils.sampling import Sampling, adjust, choose, log_softmax, most_probable
from utils.stopping import FinishReason, Stopping, TextStream


@dataclass
class Generation:
    """What was generated for one sequence.

    Attributes:
        prompt_ids: text ids that were given, pictures left out.
        generated_ids: new ids in order; the last is an end id if one was chosen.
        log_probs: of each new id, the natural logarithm of the model's probability (before any
            adjustment, filter or temperature).
        alternatives: for each new id, the most probable ones (id, logarithm), as many as asked for.
        finish_reason: why it ended; None while it has not.
    """

    prompt_ids: list[int]
    generated_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    kept_logits: list[Array] = field(default_factory=list, repr=False)

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """Next-token logits of every step, [len(generated_ids), v]; if they were to be kept."""
        return np.stack(self.kept_logits)


@dataclass(frozen=True)
class Details:
    """What is noted beside the ids.

    Attributes:
        alternatives: how many of the most probable ids at each step.
        keep_logits: whether all logits are kept, 4·v bytes for each token.
    """

    alternatives: int = 0
    keep_logits: bool = True


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
    """Continue prompts about pictures; see :class:`Continuation`.

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
    stopping = Stopping(max_out_tokens, (eos_id,))
    sequences = Continuation(runs, images, whole_prompts, sampling, stopping)
    for row, token in sequences:
        if on_token is not None:
            on_token(row, token)
    return sequences.results


class Continuation(Iterator[tuple[int, int]]):
    """Prompts that are being continued: gives (sequence, id) for every new id.

    Each sequence draws from a generator of its own, made of the seed and its number, so it does not
    depend on the others. What there is so far can be read at any time.

    Attributes:
        results: one a sequence.
    """

    def __init__(
        self,
        runs: Runs,
        images: Array | None,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        stopping: Stopping,
        details: Details = Details(),
        texts: Sequence[TextStream] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Runs nothing yet.

        Args:
            runs: of an entered session with its weights written.
            images: the pictures that prompts name; None for none.
            prompts: n prompts for which there is room, see :func:`execution.prompts.check_length`.
            sampling: how tokens are chosen.
            stopping: when a sequence ends.
            details: what is noted beside the ids.
            texts: one a sequence, which gets its ids; a sequence ends when its text has come to a
                stop string.
            numbers: one a sequence that decides its draws, together with the seed. By default they
                count from 0.

        Raises:
            UserError: a value of the sampling or the stopping out of its range.
        """
        sampling.validate()
        stopping.validate()
        numbers = range(len(prompts)) if numbers is None else numbers
        self._sampling, self._stopping, self._details = sampling, stopping, details
        self._runs, self._images, self._prompts = runs, images, prompts
        self._texts = texts
        self._generators = [np.random.default_rng([sampling.seed, number]) for number in numbers]
        self.results = [Generation(text_of(prompt)) for prompt in prompts]
        self._tokens = self._generate()

    def __next__(self) -> tuple[int, int]:
        """The next new id."""
        return next(self._tokens)

    def _generate(self) -> Iterator[tuple[int, int]]:
        logits = self._runs.start(self._images, self._prompts)
        while True:
            for row, result in enumerate(self.results):
                if result.finish_reason is None:
                    yield row, self._continue(row, result, logits[row])
            newest = [
                r.generated_ids[-1] if r.finish_reason is None else None for r in self.results
            ]
            if not any(token is not None for token in newest):
                return
            logits = self._runs.step(newest)

    def _continue(self, row: int, result: Generation, logits: Array) -> int:
        """Chooses the next id of a sequence."""
        early = len(result.generated_ids) < self._stopping.min_new_tokens
        ids = result.prompt_ids + result.generated_ids
        adjusted = adjust(logits, self._sampling, ids, self._stopping.end_ids if early else ())
        token = int(choose(adjusted, self._sampling, self._generators[row]))
        log_probs = log_softmax(logits)
        result.generated_ids.append(token)
        result.log_probs.append(float(log_probs[token]))
        result.alternatives.append(most_probable(log_probs, self._details.alternatives))
        if self._details.keep_logits:
            result.kept_logits.append(logits)
        result.finish_reason = self._finish_reason(row, len(result.generated_ids), token)
        return token

    def _finish_reason(self, row: int, length: int, token: int) -> FinishReason | None:
        stopping = self._stopping
        if token in stopping.end_ids:
            return FinishReason.eos
        if self._texts is not None:
            self._texts[row].append(token, may_stop=length >= stopping.min_new_tokens)
            if self._texts[row].stopped is not None:
                return FinishReason.stop_string
        return FinishReason.length if length == stopping.max_new_tokens else None
