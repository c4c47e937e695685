"""transformers' ``GenerationConfig`` in the terms of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.sampling import Processor

if TYPE_CHECKING:
    from transformers import GenerationConfig

_SAME_NAME = (
    *("max_new_tokens", "min_new_tokens", "repetition_penalty", "stop_strings"),
    "num_return_sequences",
)
_WHEN_SAMPLING = ("temperature", "top_k", "top_p")

# They say how transformers computes, what it returns, or what this model has anyway.
_WITHOUT_EFFECT = frozenset(
    (
        *("use_cache", "cache_implementation", "cache_config", "return_dict_in_generate"),
        *("pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"),
        *("disable_compile", "compile_config"),
    )
)

# Fields that become a processor of transformers, with its class and argument.
_PROCESSORS: dict[str, Callable[[Any, Any], Processor]] = {
    "no_repeat_ngram_size": lambda module, n: module.NoRepeatNGramLogitsProcessor(n),
    "bad_words_ids": lambda module, words: module.NoBadWordsLogitsProcessor(words),
    "suppress_tokens": lambda module, ids: module.SuppressTokensLogitsProcessor(ids),
    "sequence_bias": lambda module, bias: module.SequenceBiasLogitsProcessor(bias),
}
_WARPERS: dict[str, Callable[[Any, Any], Processor]] = {
    "min_p": lambda module, p: module.MinPLogitsWarper(p),
    "top_h": lambda module, h: module.TopHLogitsWarper(h),
    "typical_p": lambda module, p: module.TypicalLogitsWarper(p),
    "epsilon_cutoff": lambda module, epsilon: module.EpsilonLogitsWarper(epsilon),
    "eta_cutoff": lambda module, epsilon: module.EtaLogitsWarper(epsilon),
}


def generation_options(config: GenerationConfig) -> dict[str, Any]:
    """Options of :meth:`execution.magma.Magma.generate` that mean what a configuration says.

    As in transformers, without ``do_sample`` the most probable token is taken, and what is not set
    has transformers' default. Unlike there, ``temperature`` acts after the filters (see
    :mod:`utils.sampling`).

    Args:
        config: transformers' own object.

    Returns:
        Option to value; only what the configuration decides.

    Raises:
        UserError: it sets fields that this project has nothing for; all of them are named.
    """
    defaults = config._get_default_generation_params()
    given = {
        name: value
        for name, value in config.to_dict().items()
        if value is not None and value != defaults.get(name)
    }
    sampling = given.pop("do_sample", False)
    known = {*_SAME_NAME, *_WHEN_SAMPLING, *_PROCESSORS, *_WARPERS, "eos_token_id"}
    unknown = sorted(given.keys() - known - _WITHOUT_EFFECT)
    if unknown:
        raise UserError(
            f"this GenerationConfig sets {', '.join(unknown)}; that cannot be done here: leave "
            f"{'it' if len(unknown) == 1 else 'them'} out"
        )
    options = {name: given[name] for name in _SAME_NAME if name in given}
    options["temperature"] = 0.0
    if sampling:
        options |= {name: given.get(name, defaults[name]) for name in _WHEN_SAMPLING}
    if "eos_token_id" in given:
        ids = given["eos_token_id"]
        options["stop_tokens"] = [ids] if isinstance(ids, int) else list(ids)
    options["logits_processor"] = _processors(given, sampling)
    return options


def _processors(given: Mapping[str, Any], sampling: bool) -> list[Processor]:
    from transformers.generation import logits_process

    makers = _PROCESSORS | (_WARPERS if sampling else {})
    try:
        return [make(logits_process, given[name]) for name, make in makers.items() if name in given]
    except (ValueError, TypeError) as error:
        raise UserError(f"this GenerationConfig has a value out of its range: {error}") from error
