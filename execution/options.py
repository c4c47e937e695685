"""The options of an answer: how its tokens are chosen, when it ends, what is noted beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

from config.parsing import nearest
from execution.generate import Details
from utils.errors import UserError
from utils.generation_config import generation_options
from utils.sampling import Processor, Sampling
from utils.stopping import Stopping, token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, GPT2Tokenizer

DEFAULT_NEW_TOKENS = 20


class Options(TypedDict, total=False):
    """Keyword arguments of :meth:`execution.magma.Magma.generate` and its like.

    An argument that is given and not None holds; else what ``generation_config`` says; else the
    default, which stands behind the semicolon.

    Attributes:
        max_new_tokens: new tokens at most; 20.
        min_new_tokens: no end before so many new tokens; 0.
        num_return_sequences: samples of each prompt; 1.
        temperature: 0 takes the most probable token, larger is more random; 0.7.
        top_k: draw among so many most probable tokens, 0 for all; 0.
        top_p: draw among the most probable tokens that together reach this probability; 0.9.
        top_p_mode: "nucleus", or "magma" for the original's filter, which hardly filters;
            "nucleus".
        repetition_penalty: greater than 1 makes tokens of the text so far less probable; 1.0.
        seed: the same seed gives the same draws; the configuration's.
        stop_strings: an answer ends before the first of these; none.
        stop_tokens: ids, or texts of one token, that end an answer like the end-of-text token;
            none.
        logits_processor: logits processors of transformers, applied before temperature and filters;
            none.
        top_log_probs: how many of the most probable tokens are noted at each step; 0.
        output_logits: whether all logits are kept; False.
        generation_config: transformers' own object; none.
    """

    max_new_tokens: int
    min_new_tokens: int
    num_return_sequences: int
    temperature: float
    top_k: float
    top_p: float
    top_p_mode: str
    repetition_penalty: float
    seed: int
    stop_strings: str | Iterable[str]
    stop_tokens: str | Iterable[int | str]
    logits_processor: Iterable[Processor]
    top_log_probs: int
    output_logits: bool
    generation_config: GenerationConfig


Kinds = Mapping[str, tuple[Any, str]]
"""By the name of a value its type, and what an error calls that."""

_KINDS: Kinds = {
    **dict.fromkeys(
        ("max_new_tokens", "min_new_tokens", "num_return_sequences", "seed", "top_log_probs"),
        (Integral, "a whole number"),
    ),
    **dict.fromkeys(("temperature", "top_k", "top_p", "repetition_penalty"), (Real, "a number")),
    "stop_strings": (Iterable, "a text or a list of texts"),
    "stop_tokens": (Iterable, "a list of ids and texts"),
    "logits_processor": (Iterable, "a list of logits processors"),
}

_ELSEWHERE = {"do_sample": "; temperature=0 takes the most probable token, others draw"}
"""What to tell of transformers' arguments that have another form here."""


@dataclass(frozen=True)
class Resolved:
    """Options with all defaults filled in and checked.

    Attributes:
        sampling: how tokens are chosen.
        stopping: when an answer ends.
        details: what is noted.
        samples: answers to each prompt.
    """

    sampling: Sampling
    stopping: Stopping
    details: Details
    samples: int


def resolve(options: Options, tokenizer: GPT2Tokenizer | None, seed: int) -> Resolved:
    """Fills in defaults and checks every value.

    Args:
        options: what was given.
        tokenizer: the model's; None to check only what needs none.
        seed: the default of the seed.

    Raises:
        TypeError: there is no such option.
        UserError: a value of another type or out of its range, or a GenerationConfig that cannot
            be followed.
    """
    for name in options:
        if name not in Options.__annotations__:
            hint = _ELSEWHERE.get(name) or nearest(name, Options.__annotations__)
            raise TypeError(f"unknown option {name!r}{hint}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    generation_config = given.pop("generation_config", None)
    if generation_config is not None:
        if not hasattr(generation_config, "to_diff_dict"):
            raise UserError(
                f"generation_config is {generation_config!r}; expected a GenerationConfig of "
                "transformers"
            )
        given = generation_options(generation_config) | given
    check_kinds(given, _KINDS)
    samples = given.get("num_return_sequences", 1)
    if samples < 1:
        raise UserError(f"the number of samples is {samples}; it must be 1 or greater")
    sampling = _sampling({"seed": seed} | given)
    stopping = _stopping(given, tokenizer)
    sampling.validate()
    stopping.validate()
    noted = given.get("top_log_probs", 0)
    if noted < 0:
        raise UserError(f"{noted} most probable tokens are asked for; it must be 0 or greater")
    details = Details(noted, given.get("output_logits", False))
    return Resolved(sampling, stopping, details, samples)


def check_kinds(values: Mapping[str, object], kinds: Kinds) -> None:
    """Check the types of values.

    Raises:
        UserError: one has another type; the message says what is expected.
    """
    for name, value in values.items():
        kind, called = kinds.get(name, (object, ""))
        # True is a number to Python; bytes hold numbers.
        wrong = not isinstance(value, kind) or isinstance(value, bool | bytes)
        if name in kinds and wrong:
            raise UserError(f"{name} is {value!r}; expected {called}")


def _sampling(given: dict[str, Any]) -> Sampling:
    names = ("temperature", "top_k", "top_p", "seed", "top_p_mode", "repetition_penalty")
    processors = tuple(given.get("logits_processor", ()))
    for processor in processors:
        if not callable(processor):
            raise UserError(f"logits processor {processor!r} cannot be called")
    return Sampling(**{n: given[n] for n in names if n in given}, processors=processors)


def _stopping(given: dict[str, Any], tokenizer: GPT2Tokenizer | None) -> Stopping:
    strings, tokens = (
        (value,) if isinstance(value, str) else tuple(value)
        for value in (given.get("stop_strings", ()), given.get("stop_tokens", ()))
    )
    ends: tuple[int, ...] = ()
    if tokenizer is not None:
        ends = (int(tokenizer.eos_token_id), *token_ids(tokenizer, tokens))
    return Stopping(
        given.get("max_new_tokens", DEFAULT_NEW_TOKENS),
        ends,
        given.get("min_new_tokens", 0),
        strings,
    )
