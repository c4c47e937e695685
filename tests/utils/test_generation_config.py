"""transformers' GenerationConfig: what it says is done, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import logits_process

from utils.errors import UserError
from utils.generation_config import generation_options


def test_an_empty_one_is_transformers_default() -> None:
    assert generation_options(GenerationConfig()) == {"temperature": 0.0, "logits_processor": []}


def test_sampling_has_transformers_defaults() -> None:
    options = generation_options(GenerationConfig(do_sample=True, temperature=0.5))
    assert options == {"temperature": 0.5, "top_k": 50, "top_p": 1.0, "logits_processor": []}


def test_fields_keep_their_meaning() -> None:
    config = GenerationConfig(
        max_new_tokens=9,
        min_new_tokens=2,
        repetition_penalty=1.2,
        stop_strings=["x"],
        num_return_sequences=3,
        do_sample=True,
        top_k=4,
        top_p=0.8,
        eos_token_id=[3, 4],
        use_cache=False,
        pad_token_id=1,
    )
    options = generation_options(config)
    del options["logits_processor"]
    assert options == {
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "repetition_penalty": 1.2,
        "stop_strings": ["x"],
        "num_return_sequences": 3,
        "temperature": 1.0,
        "top_k": 4,
        "top_p": 0.8,
        "stop_tokens": [3, 4],
    }
    assert generation_options(GenerationConfig(eos_token_id=5))["stop_tokens"] == [5]


FILTERS = {
    "no_repeat_ngram_size": (2, logits_process.NoRepeatNGramLogitsProcessor(2)),
    "bad_words_ids": ([[3], [1, 4]], logits_process.NoBadWordsLogitsProcessor([[3], [1, 4]])),
    "suppress_tokens": ([2, 7], logits_process.SuppressTokensLogitsProcessor([2, 7])),
    "sequence_bias": (
        [[[5], 3.0]],
        logits_process.SequenceBiasLogitsProcessor([[[5], 3.0]]),
    ),
    "min_p": (0.2, logits_process.MinPLogitsWarper(0.2)),
    "top_h": (0.5, logits_process.TopHLogitsWarper(0.5)),
    "typical_p": (0.6, logits_process.TypicalLogitsWarper(0.6)),
    "epsilon_cutoff": (0.05, logits_process.EpsilonLogitsWarper(0.05)),
    "eta_cutoff": (0.05, logits_process.EtaLogitsWarper(0.05)),
}


@pytest.mark.parametrize("field", FILTERS)
def test_filters_are_transformers_own(field: str, rng: np.random.Generator) -> None:
    value, expected = FILTERS[field]
    (processor,) = generation_options(GenerationConfig(do_sample=True, **{field: value}))[
        "logits_processor"
    ]
    ids = torch.tensor([[6, 1, 4, 1]])
    logits = torch.from_numpy((2 * rng.standard_normal((1, 40))).astype(np.float32))
    theirs = expected(ids, logits.clone())
    assert not torch.equal(theirs, logits)
    assert torch.equal(processor(ids, logits.clone()), theirs)


def test_what_cannot_be_done_is_named() -> None:
    config = GenerationConfig(num_beams=4, penalty_alpha=0.5, max_length=30)
    with pytest.raises(UserError, match=r"sets max_length, num_beams, penalty_alpha; .* them out"):
        generation_options(config)


def test_values_out_of_range_are_one_line() -> None:
    config = GenerationConfig()
    config.no_repeat_ngram_size = -3
    with pytest.raises(UserError, match="out of its range"):
        generation_options(config)
