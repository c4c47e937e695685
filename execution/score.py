"""Log-probabilities of given continuations: closed answers, classification, how likely a text is.

Letters: b sequences of a run.
"""

from __future__ import annotations

from collections.abc import Sequence

from config.config import MagmaConfig
from execution.prompts import Array, Ids, Prompt, check_continuations, check_prompts, with_pictures
from execution.runs import MagmaSession, runs_of


def score(
    session: MagmaSession,
    config: MagmaConfig,
    images: Array | None,
    prompts: Sequence[Prompt],
    continuations: Sequence[Ids],
) -> list[Array]:
    """Log-probabilities of given continuations of prompts about pictures.

    Any number of pairs is taken, b in a run. Pairs of one prompt share its reading.

    Args:
        session: an entered session of the cached scheme with its weights written.
        config: the configuration that the session was built of.
        images: preprocessed pictures, (number, 3, y, x), or (3, y, x) for one; None for text alone.
        prompts: lists of ids, pictures and embeddings. If none of them names a picture, each begins
            with its own. To score candidates behind one prompt, repeat it, naming its picture.
        continuations: a list of one or more ids for each prompt.

    Returns:
        For each pair, [len(continuation)] float32: the logarithm of each id's probability behind
        the prompt and the ids before it. Their sum is the continuation's log-likelihood.

    Raises:
        UserError: sizes or values that do not fit; raised before the first run.
    """
    images, prompts = with_pictures(config, images, prompts)
    check_prompts(config, prompts, 0 if images is None else len(images))
    check_continuations(config, prompts, continuations)
    runs = runs_of(session, config)
    first: dict[tuple, int] = {}
    for pair, prompt in enumerate(prompts):
        first.setdefault(tuple(prompt), pair)
    # Pairs of one prompt together, and those of like lengths: few slots are filled for nothing.
    order = sorted(
        range(len(prompts)),
        key=lambda pair: (first[tuple(prompts[pair])], len(continuations[pair])),
    )
    scores: dict[int, Array] = {}
    for start in range(0, len(order), config.batch):
        pairs = order[start : start + config.batch]
        found = runs.score(images, [prompts[n] for n in pairs], [continuations[n] for n in pairs])
        scores |= zip(pairs, found, strict=True)
    return [scores[pair] for pair in range(len(prompts))]
