"""The choice of tokens, against a plain restatement and against transformers' filters."""

from __future__ import annotations

import numpy as np
import pytest

from utils.errors import UserError
from utils.sampling import (
    Sampling,
    adjust,
    choose,
    log_softmax,
    magma_top_p_filter,
    most_probable,
    repetition_penalty,
    softmax,
    top_k_filter,
    top_p_filter,
)

DRAWS = 20_000
# Five standard deviations of a frequency over that many draws.
FREQUENCY_TOLERANCE = 5 * 0.5 / np.sqrt(DRAWS)


def _nucleus(logits: np.ndarray, p: float) -> set[int]:
    """The smallest set of most probable tokens with mass p or more, by its definition."""
    shifted = [float(value) - float(max(logits)) for value in logits]
    total = sum(np.exp(value) for value in shifted)
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept: list[int] = []
    for token in ranked:
        kept.append(token)
        if sum(np.exp(shifted[t]) / total for t in kept) >= p:
            break
    return set(kept)


def _kept(filtered: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.isfinite(filtered)).tolist())


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_top_p_keeps_the_nucleus(p: float, spread: float, rng: np.random.Generator) -> None:
    for _ in range(20):
        logits = (spread * rng.standard_normal(37)).astype(np.float32)
        filtered = top_p_filter(logits, p)
        kept = _kept(filtered)
        assert kept == _nucleus(logits, p)
        assert (filtered[list(kept)] == logits[list(kept)]).all()


def test_top_p_on_known_probabilities() -> None:
    logits = np.log(np.array([0.05, 0.30, 0.25, 0.20, 0.08, 0.06, 0.04, 0.02], np.float32))
    assert _kept(top_p_filter(logits, 0.5)) == {1, 2}
    assert _kept(top_p_filter(logits, 0.7)) == {1, 2, 3}
    assert _kept(top_p_filter(logits, 0.1)) == {1}


def test_top_p_ties_go_to_the_smaller_ids() -> None:
    assert _kept(top_p_filter(np.zeros(8, np.float32), 0.5)) == {0, 1, 2, 3}


def test_top_p_one_keeps_everything(rng: np.random.Generator) -> None:
    logits = (30 * rng.standard_normal((3, 50))).astype(np.float32)
    np.testing.assert_array_equal(top_p_filter(logits, 1.0), logits)


@pytest.mark.parametrize("k", [1, 2, 7, 36])
def test_top_k_keeps_k(k: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((5, 37)).astype(np.float32)
    for before, after in zip(logits, top_k_filter(logits, k), strict=True):
        assert _kept(after) == set(sorted(range(37), key=lambda t, row=before: -row[t])[:k])


def test_top_k_keeps_all_equal_ones() -> None:
    logits = np.array([1, 3, 2, 3, 2], np.float32)
    assert _kept(top_k_filter(logits, 1)) == {1, 3}
    assert _kept(top_k_filter(logits, 3)) == {1, 2, 3, 4}


@pytest.mark.parametrize("k", [0, 5, 6])
def test_top_k_without_effect(k: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((2, 5)).astype(np.float32)
    np.testing.assert_array_equal(top_k_filter(logits, k), logits)


def test_filters_agree_with_transformers(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = (3 * rng.standard_normal((16, 211))).astype(np.float32)
    for k in (1, 5, 100, 211):
        theirs = TopKLogitsWarper(k)(None, torch.from_numpy(logits.copy())).numpy()
        np.testing.assert_array_equal(top_k_filter(logits, k), theirs)
    for p in (0.05, 0.3, 0.7, 0.95):
        theirs = TopPLogitsWarper(p)(None, torch.from_numpy(logits.copy())).numpy()
        np.testing.assert_array_equal(top_p_filter(logits, p), theirs)


KNOWN = np.log(np.array([0.30, 0.25, 0.20, 0.08, 0.06, 0.05, 0.04, 0.02], np.float32))


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.9, set(range(8))), (0.7, set(range(8))), (0.5, {0, 2, 3, 4, 5, 6, 7}), (0.1, {0, 6, 7})],
)
def test_the_originals_filter_on_known_probabilities(p: float, kept: set[int]) -> None:
    assert _kept(magma_top_p_filter(KNOWN, p)) == kept


@pytest.mark.parametrize("p", [0.05, 0.4, 0.95])
def test_the_originals_filter_by_its_definition(p: float, rng: np.random.Generator) -> None:
    for spread in (0.1, 2.0):
        logits = (spread * rng.standard_normal(53)).astype(np.float32)
        ranked = sorted(range(53), key=lambda token, x=logits: -x[token])
        mass = np.cumsum(softmax(logits)[ranked])
        removed = {ranked[r] for r in range(1, 53) if mass[r - 1] < 1 - p}
        assert _kept(magma_top_p_filter(logits, p)) == set(range(53)) - removed
    np.testing.assert_array_equal(magma_top_p_filter(logits, 0.0), logits)
    np.testing.assert_array_equal(magma_top_p_filter(logits, 1.0), logits)


def test_top_p_mode_chooses_the_filter(rng: np.random.Generator) -> None:
    rows = np.tile(KNOWN, (2000, 1))
    nucleus, magma = (
        set(choose(rows, Sampling(1.0, 0, 0.1, top_p_mode=mode), rng).tolist())
        for mode in ("nucleus", "magma")
    )
    assert nucleus == {0}
    assert magma == {0, 6, 7}


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_agrees_with_transformers(
    penalty: float, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    for _ in range(5):
        logits = (3 * rng.standard_normal(97)).astype(np.float32)
        ids = rng.integers(0, 97, 20).tolist()
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor([ids]), torch.from_numpy(logits[None].copy())
        )
        np.testing.assert_array_equal(repetition_penalty(logits, ids, penalty), theirs[0].numpy())


def test_ids_without_a_logit_are_not_penalised() -> None:
    logits = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(repetition_penalty(logits, [9, 1], 2.0), [0, 0.5, 2, 3])


@pytest.mark.parametrize("penalty", [1e-300, 1e-45, 1e39, 1e308])
def test_finite_logits_stay_finite_however_large_the_penalty(penalty: float) -> None:
    logits = np.array([2, -3, 1, 0, -np.inf], np.float32)
    penalised = repetition_penalty(logits, [0, 1, 3, 4], penalty)
    assert np.isfinite(penalised[:4]).all()
    assert penalised[4] == -np.inf
    assert (penalised[:2] < logits[:2]).all() == (penalty > 1)


@pytest.mark.parametrize("returned", [None, np.zeros(7, np.float32), np.zeros((1, 5), np.float32)])
def test_what_is_no_logits_processor_is_named(returned: object) -> None:
    logits = np.zeros(7, np.float32)
    with pytest.raises(UserError, match=r"no logits processor: it returns .* \(1, 7\)"):
        adjust(logits, Sampling(processors=(lambda _ids, _scores: returned,)), [])


def test_processors_that_make_nan_are_named(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(8).astype(np.float32)
    sampling = Sampling(processors=(lambda _ids, scores: scores * float("nan"),))
    with pytest.raises(UserError, match="the logits processors give NaN"):
        adjust(logits, sampling, [1])


def test_processors_of_transformers_see_text_and_logits(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, NoRepeatNGramLogitsProcessor

    logits = (2 * rng.standard_normal(31)).astype(np.float32)
    before = logits.copy()
    ids = [4, 9, 17, 4, 9]
    theirs = torch.from_numpy(logits[None].copy())
    processors = (NoRepeatNGramLogitsProcessor(3), MinPLogitsWarper(0.1))
    for processor in processors:
        theirs = processor(torch.tensor([ids]), theirs)
    ours = adjust(logits, Sampling(processors=processors), ids)
    np.testing.assert_array_equal(ours, theirs[0].numpy())
    assert ours[17] == -np.inf
    np.testing.assert_array_equal(logits, before)


def test_processors_may_write_to_what_they_get(rng: np.random.Generator) -> None:
    def overwrite(_ids: object, scores: np.ndarray) -> np.ndarray:
        scores[:] = -1
        return scores

    logits = rng.standard_normal(7).astype(np.float32)
    before = logits.copy()
    assert (adjust(logits, Sampling(processors=(overwrite,)), []) == -1).all()
    np.testing.assert_array_equal(logits, before)


def test_forbidden_tokens_are_never_chosen(rng: np.random.Generator) -> None:
    logits = rng.standard_normal(12).astype(np.float32)
    best = int(logits.argmax())
    adjusted = adjust(logits, Sampling(), [], forbidden=(best, 99))
    assert _kept(adjusted) == set(range(12)) - {best}
    with pytest.raises(UserError, match="leave no token"):
        adjust(logits, Sampling(), [], forbidden=range(12))


def test_log_probabilities_agree_with_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    logits = (10 * rng.standard_normal((4, 211))).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_most_probable_tokens_in_descending_order(count: int, rng: np.random.Generator) -> None:
    log_probs = rng.standard_normal(37)
    expected = sorted(enumerate(log_probs.tolist()), key=lambda pair: -pair[1])[:count]
    assert most_probable(log_probs, count) == expected


def test_temperature_zero_takes_the_largest_and_draws_nothing(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((6, 41)).astype(np.float32)
    logits[2, [7, 30]] = 9
    generator = np.random.default_rng(3)
    before = generator.bit_generator.state
    chosen = choose(logits, Sampling(temperature=0, top_k=3, top_p=0.1), generator)
    assert chosen[2] == 7
    np.testing.assert_array_equal(chosen, logits.argmax(axis=-1))
    assert generator.bit_generator.state == before


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_frequencies_are_the_filtered_probabilities(
    temperature: float, rng: np.random.Generator
) -> None:
    logits = rng.standard_normal(9).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_k=6, top_p=0.8)
    chosen = choose(np.tile(logits, (DRAWS, 1)), sampling, rng)
    # Temperature comes after the filters: they see the logits as they are.
    most_probable = np.isin(np.arange(9), np.argsort(-logits)[:6])
    kept = sorted(_nucleus(np.where(most_probable, logits, -np.inf), 0.8))
    expected = np.zeros(9)
    expected[kept] = np.exp(logits[kept].astype(np.float64) / temperature)
    expected /= expected.sum()
    frequencies = np.bincount(chosen, minlength=9) / DRAWS
    assert (frequencies[expected == 0] == 0).all()
    np.testing.assert_allclose(frequencies, expected, atol=FREQUENCY_TOLERANCE)


def test_same_seed_same_choice(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((100, 50)).astype(np.float32)
    first, again, other = (
        choose(logits, Sampling(), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_extreme_temperatures_and_logits(temperature: float, rng: np.random.Generator) -> None:
    largest = np.finfo(np.float32).max
    logits = np.array([-np.inf, -largest, 0, 1, -np.inf], np.float32)
    chosen = choose(np.tile(logits, (200, 1)), Sampling(temperature, 0, 1.0), rng)
    assert set(chosen.tolist()) <= {1, 2, 3}
    if temperature < 1:
        assert set(chosen.tolist()) == {3}


def test_only_possible_token_is_always_chosen(rng: np.random.Generator) -> None:
    logits = np.full((500, 12), -np.inf, np.float32)
    logits[:, 11] = -4
    assert (choose(logits, Sampling(1.0, 0, 1.0), rng) == 11).all()


def test_softmax_of_large_logits() -> None:
    np.testing.assert_array_equal(softmax(np.array([60000.0, 60000.0, -60000.0])), [0.5, 0.5, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float, rng: np.random.Generator) -> None:
    logits = np.array([0, bad, 1], np.float32)
    for temperature in (0.0, 0.7):
        with pytest.raises(UserError, match="not finite"):
            choose(logits, Sampling(temperature), rng)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": float("nan")}, "top_k"),
        ({"top_k": float("inf")}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"top_p_mode": "middle"}, "top_p_mode"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} is"):
        Sampling(**changes).validate()


def test_whole_floats_are_a_top_k() -> None:
    Sampling(top_k=0.0).validate()
    logits = np.arange(5, dtype=np.float32)
    assert choose(logits, Sampling(0.7, 1.0, 1.0), np.random.default_rng(0)) == 4
