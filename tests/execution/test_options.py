"""Options of an answer: defaults, and one line for every value that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from execution.options import resolve
from utils.errors import UserError
from utils.tokenizer import SMALL_TOKENIZER, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SMALL_TOKENIZER)


def test_none_is_as_not_given(tokenizer):
    names = ("temperature", "max_new_tokens", "seed", "stop_strings", "generation_config")
    assert resolve(dict.fromkeys(names), tokenizer, 5) == resolve({}, tokenizer, 5)
    assert resolve({"seed": None}, tokenizer, 5).sampling.seed == 5


def test_numbers_of_numpy_and_single_texts(tokenizer):
    given: Any = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "top_k": 4.0}
    found = resolve(given | {"stop_strings": "xy", "stop_tokens": "Q"}, tokenizer, 0)
    assert found.stopping.max_new_tokens == 3
    assert (found.sampling.temperature, found.sampling.top_k) == (0.5, 4)
    assert found.stopping.stop_strings == ("xy",)
    assert found.stopping.end_ids == (tokenizer.eos_token_id, *tokenizer.encode("Q"))
    again: Any = {"stop_tokens": (t for t in ["Q", 7]), "stop_strings": (s for s in "ab")}
    found = resolve(again, tokenizer, 0)
    assert found.stopping.end_ids[1:] == (*tokenizer.encode("Q"), 7)
    assert found.stopping.stop_strings == ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens is '3'"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"num_return_sequences": 2.0}, "num_return_sequences is 2.0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"temperature": "0.7"}, "temperature is '0.7'; expected a number"),
        ({"top_p": [1]}, r"top_p is \[1\]"),
        ({"top_log_probs": 1.5}, "top_log_probs is 1.5"),
        ({"top_log_probs": -1}, "-1 most probable tokens"),
        ({"stop_tokens": 5}, "stop_tokens is 5; expected a list"),
        ({"stop_tokens": [None]}, "unknown stop token None"),
        ({"stop_tokens": [5.0]}, "unknown stop token 5.0"),
        ({"stop_tokens": ["\udcff"]}, "not valid text"),
        ({"stop_strings": 5}, "stop_strings is 5; expected a text"),
        ({"stop_strings": b"a"}, "stop_strings is b'a'"),
        ({"stop_strings": ["a", 5]}, "a stop string is 5"),
        ({"logits_processor": len}, "expected a list of logits processors"),
        ({"logits_processor": [5]}, "logits processor 5 cannot be called"),
        ({"generation_config": {}}, "expected a GenerationConfig of transformers"),
    ],
)
def test_values_of_other_types_are_refused(options, message, tokenizer):
    with pytest.raises(UserError, match=message):
        resolve(options, tokenizer, 0)
