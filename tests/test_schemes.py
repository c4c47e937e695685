"""The cached scheme against the recompute scheme and against the PyTorch reference."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch

from config.config import MagmaConfig
from execution.cached import RunKind
from execution.cached_runs import CachedRuns
from execution.generate import Generation, generate
from execution.prompts import Picture, Prompt
from execution.runs import runs_of
from inference import inference
from tests.small_configs import PRECISIONS, TENSOR_PARALLEL, small_config
from tests.small_sessions import (
    SIZES,
    VOCABULARY,
    logits_of,
    open_session,
    pictures,
    recorded_kinds,
)
from tests.tolerances import BY_PRECISION, FLOAT16, FLOAT32, assert_close, relative_error
from utils.errors import UserError
from utils.sampling import Sampling

GREEDY = Sampling(temperature=0)
NO_END = -1
"""An id that no text has, so that all of it is generated."""

BATCHES = (1, 2, 3)
# Slower ways of running the same program, that leave out what the engine does to be fast.
PLAIN_WAYS = {"POPXL_TORCH_EXECUTOR": "interpreter", "POPXL_TORCH_JOIN_SHARDS": "0"}


def random_prompts(rng: np.random.Generator, batch: int, longest: int) -> list[list[int]]:
    """Prompts of different lengths, the empty one among them sooner or later."""
    lengths = rng.integers(0, longest + 1, batch)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


def continued(
    session: addons.TaskSession,
    config: MagmaConfig,
    images: np.ndarray | None,
    prompts: Sequence[Prompt],
    count: int,
) -> list[Generation]:
    return generate(session, config, images, prompts, GREEDY, count, NO_END)


def ids_of(results: Sequence[Generation]) -> list[list[int]]:
    return [result.generated_ids for result in results]


def random_batch(
    rng: np.random.Generator, batch: int, longest: int
) -> tuple[np.ndarray, list[list[int]]]:
    """Pictures and prompts; in every other batch some sequences have those of others."""
    images, texts = pictures(rng, batch), random_prompts(rng, batch, longest)
    rows = rng.integers(0, batch, batch) if rng.random() < 0.5 else np.arange(batch)
    return images[rows], [texts[row] for row in rows]


def check_schemes_agree(
    rng: np.random.Generator, tensor_parallel: int, batch: int, prompts: int
) -> None:
    config = small_config(tensor_parallel, "float32", batch, **SIZES)
    with open_session(config, "cached") as cached, open_session(config, "recompute") as plain:
        for _ in range(-(-prompts // batch)):
            images, texts = random_batch(rng, batch, 16)
            ours, theirs = (continued(s, config, images, texts, 9) for s in (cached, plain))
            assert ids_of(ours) == ids_of(theirs)
            for one, other in zip(ours, theirs, strict=True):
                assert_close(one.logits, other.logits, FLOAT32)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_greedy_text_equals_the_recompute_schemes(rng, tensor_parallel, batch):
    check_schemes_agree(rng, tensor_parallel, batch, prompts=6)


# -- 200 prompts in every way that there is ---------------------------------------------------

NEW_TOKENS = 9
BATCHES_OF_200 = (1, 2, 4)


def asked_200() -> tuple[np.ndarray, list[list[int]]]:
    """Pictures and prompts, the same from call to call; every other four have equal ones."""
    rng = np.random.default_rng(200)
    fours = [random_batch(rng, 4, 16) for _ in range(50)]
    return np.concatenate([images for images, _ in fours]), [t for _, ts in fours for t in ts]


def greedy_texts(scheme: str, tensor_parallel: int, batch: int) -> list[list[int]]:
    images, texts = asked_200()
    config = small_config(tensor_parallel, "float32", batch, **SIZES)
    with open_session(config, scheme) as session:
        parts = (slice(first, first + batch) for first in range(0, len(texts), batch))
        return [
            ids
            for part in parts
            for ids in ids_of(continued(session, config, images[part], texts[part], NEW_TOKENS))
        ]


def forced_logits(tensor_parallel: int, batch: int, new: Sequence[Sequence[int]]) -> np.ndarray:
    """(prompts, new tokens, v): the logits of each given new token in half precision."""
    images, texts = asked_200()
    config = small_config(tensor_parallel, "float16", batch, **SIZES)
    found = []
    with open_session(config, "cached") as session:
        runs = runs_of(session, config)
        for first in range(0, len(texts), batch):
            part = slice(first, first + batch)
            prompts = [[Picture(row), *text] for row, text in enumerate(texts[part])]
            steps = [runs.start(images[part], prompts)]
            steps += [
                runs.step(tokens) for tokens in zip(*(ids[:-1] for ids in new[part]), strict=True)
            ]
            found.append(np.stack(steps, axis=1))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def texts_of_the_reference(reference) -> list[list[int]]:
    return [
        reference.greedy(
            torch.from_numpy(image[None]), torch.tensor([text], dtype=torch.int64), NEW_TOKENS
        )[0].tolist()
        for image, text in zip(*asked_200(), strict=True)
    ]


@pytest.fixture(scope="module")
def logits_of_the_reference(reference, texts_of_the_reference) -> np.ndarray:
    """(prompts, new tokens, v) of those texts."""
    prompts = zip(*asked_200(), texts_of_the_reference, strict=True)
    whole = [(image[None], [Picture(0), *text, *new[:-1]]) for image, text, new in prompts]
    return np.stack([logits_of(reference, *asked)[-NEW_TOKENS:].numpy() for asked in whole])


@pytest.fixture(scope="module", params=["1", "0"], ids=["native", "stock"])
def process(request) -> Iterator[ProcessPoolExecutor]:
    """Another process, with or without native kernels: the switch is read once in each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POPXL_TORCH_NATIVE", request.param)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(asked_200).result()  # so it starts under this environment
            yield pool


@pytest.mark.long
@pytest.mark.parametrize("batch", BATCHES_OF_200)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
@pytest.mark.parametrize("scheme", ["cached", "recompute"])
def test_200_greedy_texts_are_the_references(
    process, texts_of_the_reference, scheme, tensor_parallel, batch
):
    texts = process.submit(greedy_texts, scheme, tensor_parallel, batch).result()
    assert texts == texts_of_the_reference
    assert len({tuple(text) for text in texts}) > 50


@pytest.mark.long
@pytest.mark.parametrize("batch", BATCHES_OF_200)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_200_forced_texts_have_the_references_logits_in_half_precision(
    process, texts_of_the_reference, logits_of_the_reference, tensor_parallel, batch
):
    ours = process.submit(forced_logits, tensor_parallel, batch, texts_of_the_reference).result()
    assert_close(ours, logits_of_the_reference, FLOAT16)


def test_greedy_text_is_the_same_for_every_cut_and_batch(rng):
    images = pictures(rng, 3)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (0, 12, 5)]
    texts = []
    for r in TENSOR_PARALLEL:
        for batch in (1, 3):
            config = small_config(r, "float32", batch, **SIZES)
            with open_session(config, "cached") as session:
                text: list[list[int]] = []
                for first in range(0, 3, batch):
                    part = slice(first, first + batch)
                    text += ids_of(continued(session, config, images[part], prompts[part], 10))
                texts.append(text)
    assert all(text == texts[0] for text in texts)
    assert len({tuple(row) for row in texts[0]}) == 3


@pytest.mark.parametrize("batch", BATCHES)
def test_greedy_text_equals_the_references(rng, reference, batch):
    config = small_config(2, "float32", batch, **SIZES)
    images, prompts = pictures(rng, batch), random_prompts(rng, batch, 12)
    with open_session(config, "cached") as session:
        results = continued(session, config, images, prompts, 12)
    for image, prompt, result in zip(images, prompts, results, strict=True):
        ids = torch.tensor([prompt], dtype=torch.int64)
        expected = reference.greedy(torch.from_numpy(image[None]), ids, 12)
        assert result.generated_ids == expected[0].tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_forced_text_has_the_references_logits(rng, reference, tensor_parallel, precision):
    """Tokens are given, not chosen: half precision may choose another where two are close."""
    batch, new = 2, 8
    config = small_config(tensor_parallel, precision, batch, **SIZES)
    images = pictures(rng, batch)
    texts = [rng.integers(0, VOCABULARY, length).tolist() for length in (4 + new, 11 + new)]
    with open_session(config, "cached") as session:
        runs = CachedRuns(session, config)
        prompts = [[Picture(row), *text[:-new]] for row, text in enumerate(texts)]
        logits = [runs.start(images, prompts)]
        logits += [runs.step([text[k] for text in texts]) for k in range(-new, 0)]
    for row, text in enumerate(texts):
        image, ids = torch.from_numpy(images[row : row + 1]), torch.tensor([text])
        expected = reference.logits(image, ids)[0, -new - 1 :].numpy()
        assert_close(np.stack([step[row] for step in logits]), expected, BY_PRECISION[precision])


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_pictures_and_words_in_any_order(rng, reference, tensor_parallel):
    config = small_config(tensor_parallel, "float32", 2, **SIZES)
    images = pictures(rng, 5)
    words = rng.integers(0, VOCABULARY, 20).tolist()
    prompts = [
        [*words[:3], Picture(4), words[3], Picture(0), Picture(2), *words[4:9]],
        [Picture(1), Picture(3), *words[9:]],
    ]
    with open_session(config, "cached") as session:
        results = continued(session, config, images, prompts, 2)
    for prompt, result in zip(prompts, results, strict=True):
        expected = logits_of(reference, images, prompt)[-1].numpy()
        assert_close(result.logits[0], expected, FLOAT32)
        longer = [*prompt, result.generated_ids[0]]
        assert_close(result.logits[1], logits_of(reference, images, longer)[-1].numpy(), FLOAT32)
        assert result.prompt_ids == [item for item in prompt if not isinstance(item, Picture)]


def test_text_without_a_picture(rng, reference):
    config = small_config(2, "float32", 2, **SIZES)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (1, 9)]
    with open_session(config, "cached") as session:
        results = continued(session, config, None, prompts, 3)
    for prompt, result in zip(prompts, results, strict=True):
        for step, logits in enumerate(result.logits):
            text = [*prompt, *result.generated_ids[:step]]
            assert_close(logits, logits_of(reference, None, text)[-1].numpy(), FLOAT32)


def test_pads_are_never_attended(rng):
    """Whatever embedding stands before a sequence's first position, not a bit changes."""
    config = small_config(2, "float32", 2, **SIZES)
    images = pictures(rng, 2)
    prompts = [[Picture(0), 7], [Picture(1), *rng.integers(0, VOCABULARY, 9).tolist()]]

    class FilledPads(CachedRuns):
        """Runs that take pads from some row of the pictures' embeddings."""

        filling = 0

        def _run(self, kind, *numbers):
            source, pads = self._host["source"], self._host["pads"]
            for row, pad in enumerate(pads):
                source[row, :pad] = self.filling
            return super()._run(kind, *numbers)

    logits = []
    with open_session(config, "cached") as session:
        for filling in (0, 6):
            runs = FilledPads(session, config)
            runs.filling = filling
            first = runs.start(images, prompts)
            assert runs._host["pads"].tolist() == [8, 0]
            logits.append([first, *(runs.step([3, 4]) for _ in range(4))])
    np.testing.assert_array_equal(*logits)


def test_what_earlier_prompts_left_changes_nothing(rng):
    config = small_config(2, "float32", 2, **SIZES)
    images, prompts = pictures(rng, 2), [[1, 2], [3, 4, 5, 6]]
    longer = [rng.integers(0, VOCABULARY, length).tolist() for length in (20, 14)]
    with open_session(config, "cached") as session:
        fresh = continued(session, config, images, prompts, 6)
        other = continued(session, config, pictures(rng, 2), longer, 5)
        again = continued(session, config, images, prompts, 6)
    for one, two, different in zip(fresh, again, other, strict=True):
        np.testing.assert_array_equal(one.logits, two.logits)
        assert relative_error(different.logits[:1], one.logits[:1]) > FLOAT32


def test_a_row_is_the_same_in_any_company(rng):
    double, single = (small_config(2, "float32", b, **SIZES) for b in (2, 1))
    images = pictures(rng, 2)
    prompts = [[9], rng.integers(0, VOCABULARY, 15).tolist()]
    with open_session(double, "cached") as session:
        together = continued(session, double, images, prompts, 8)
    with open_session(single, "cached") as session:
        for row, result in enumerate(together):
            (alone,) = continued(session, single, images[row], [prompts[row]], 8)
            assert alone.generated_ids == result.generated_ids
            assert_close(alone.logits, result.logits, FLOAT32)


def test_samples_share_the_picture_and_the_prompt(rng, monkeypatch):
    batch, count = 3, 6
    config, single = (small_config(2, "float32", b, **SIZES) for b in (batch, 1))
    image, prompt = pictures(rng, 1), rng.integers(0, VOCABULARY, 7).tolist()
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=3)
    same = np.repeat(image, batch, axis=0), [prompt] * batch
    with open_session(config, "cached") as session:
        # What is left in the cache must not matter.
        continued(session, config, pictures(rng, batch), [[1] * 20, [2], [3] * 5], 3)
        kinds = recorded_kinds(monkeypatch, session)
        results = generate(session, config, *same, sampling, count, NO_END)
    assert kinds == [RunKind.ENCODE, RunKind.SHARED_PREFILL] + [RunKind.DECODE] * (count - 1)
    assert len({tuple(result.generated_ids) for result in results}) == batch
    with open_session(single, "cached") as session:
        for result in results:
            runs = CachedRuns(session, single)
            logits = [runs.start(image, [[Picture(0), *prompt]])]
            logits += [runs.step([token]) for token in result.generated_ids[:-1]]
            assert_close(np.concatenate(logits), result.logits, FLOAT32)


def test_sequences_that_ended_leave_the_others_alone(rng):
    config = small_config(2, "float32", 2, **SIZES)
    images, prompts = pictures(rng, 2), [[1, 2, 3], [4]]
    with open_session(config, "cached") as session:
        whole = continued(session, config, images, prompts, 10)
        first, second = ids_of(whole)
        end = next(token for token in first[:8] if token not in second)
        results = generate(session, config, images, prompts, GREEDY, 10, end)
    assert results[0].generated_ids == first[: first.index(end) + 1]
    assert results[1].generated_ids == second


def test_the_cache_can_be_filled_to_its_last_slot(rng):
    config = small_config(2, "float32", 2, **SIZES)
    room = SIZES["text_tokens"]
    images = pictures(rng, 2)
    prompts = [rng.integers(0, VOCABULARY, length).tolist() for length in (room - 5, 2)]
    full = [rng.integers(0, VOCABULARY, room).tolist(), [1]]
    with open_session(config, "cached") as cached, open_session(config, "recompute") as plain:
        for texts, count in ((prompts, 6), (full, 1)):
            ours, theirs = (continued(s, config, images, texts, count) for s in (cached, plain))
            assert ids_of(ours) == ids_of(theirs)


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([[1] * 20, []], 6, "1 tokens too long: 20 of the prompt and max_out_tokens 6"),
        ([[1], [2] * 25], 1, "1 tokens too long: it has 25"),
        ([[Picture(0), Picture(1), *[5] * 21], [1]], 1, r"beside 2 pictures is 20"),
        ([[Picture(0), Picture(2)], [1]], 1, "names picture 2, but there are 2"),
        ([[Picture(0)], []], 1, "prompt 1 is empty"),
        ([[1]], 1, "1 prompts for micro_batch_size 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_run(rng, monkeypatch, prompts, count, message):
    config = small_config(2, "float32", 2, **SIZES)
    with open_session(config, "cached") as session:
        monkeypatch.setattr(session, "run", None)
        with pytest.raises(UserError, match=message):
            continued(session, config, pictures(rng, 2), prompts, count)


def test_pictures_that_no_prompt_names_cost_nothing(rng):
    config = small_config(2, "float32", 1, **SIZES)
    images = pictures(rng, 20)
    with open_session(config, "cached") as session:
        (result,) = continued(session, config, images, [[Picture(17), 1]], 2)
        (alone,) = continued(session, config, images[17], [[1]], 2)
    np.testing.assert_array_equal(result.logits, alone.logits)


def test_the_recompute_scheme_names_what_it_cannot_do(rng):
    config = small_config(1, "float32", 1, **SIZES)
    with open_session(config, "recompute") as session:
        with pytest.raises(UserError, match="needs 1 pictures, one before each text, not 0"):
            continued(session, config, None, [[1]], 1)
        with pytest.raises(UserError, match="one picture and then text only"):
            continued(session, config, pictures(rng, 1), [[1, Picture(0)]], 1)
        runs = runs_of(session, config)
        with pytest.raises(UserError, match="does not score; use the cached scheme"):
            runs.score(pictures(rng, 1), [[Picture(0)]], [[1]])
        with pytest.raises(UserError, match="gives no embeddings; use the cached scheme"):
            runs.embed(pictures(rng, 1), [Picture(0)])


def test_options_of_sampling_build_no_graph(rng, monkeypatch):
    config = small_config(2, "float32", 1, **SIZES)
    image = pictures(rng, 1)
    with open_session(config, "cached") as session:
        continued(session, config, image, [[1]], 2)
        monkeypatch.setattr(popxl.Ir, "create_empty_graph", None)
        plans = set(session._engine._plans)
        for sampling in (Sampling(1.0, 5, 0.5, seed=1), Sampling(0.3, 0, 0.9, seed=2), GREEDY):
            generate(session, config, image, [[1, 2, 3]], sampling, 9, NO_END)
        assert set(session._engine._plans) == plans


@pytest.mark.parametrize("slices", [2, 5])
def test_slicing_the_queries_changes_nothing(rng, slices):
    images, prompts = pictures(rng, 2), [[1, 2, 3], rng.integers(0, VOCABULARY, 13).tolist()]
    results = []
    for n in (1, slices):
        config = small_config(2, "float32", 2, attention_serialisation=n, **SIZES)
        with open_session(config, "cached") as session:
            results.append(continued(session, config, images, prompts, 4))
    for one, other in zip(*results, strict=True):
        assert_close(one.logits, other.logits, FLOAT32)


@pytest.mark.parametrize("setting", PLAIN_WAYS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_agree(rng, monkeypatch, precision, setting):
    """Replicas at once or one by one, shards joined or apart."""
    config = small_config(2, precision, 2, **SIZES)
    images, prompts = pictures(rng, 2), [[1, 2, 3], [4]]
    tokens = rng.integers(0, VOCABULARY, (4, 2)).tolist()

    @functools.cache
    def logits(way: str) -> np.ndarray:
        with open_session(config, "cached") as session:
            runs = CachedRuns(session, config)
            whole = [[Picture(row), *prompt] for row, prompt in enumerate(prompts)]
            return np.stack([runs.start(images, whole), *(runs.step(t) for t in tokens)])

    expected = logits("fast")
    monkeypatch.setenv(setting, PLAIN_WAYS[setting])
    assert_close(logits("plain"), expected, BY_PRECISION[precision])


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UserError, match="unknown scheme 'cache'; there are cached and recompute"):
        inference(small_config(), scheme="cache")


def test_phases_of_both_schemes_have_the_same_weights(tmp_path: Path):
    config = small_config(2, **SIZES)
    cached, plain = (inference(config, scheme=scheme) for scheme in ("cached", "recompute"))
    assert {
        key: (tensor.shape, tensor.dtype) for key, tensor in cached.state.fwd.to_dict().items()
    } == {key: (tensor.shape, tensor.dtype) for key, tensor in plain.state.fwd.to_dict().items()}


@pytest.mark.parametrize(("tensor_parallel", "at_once"), [(1, 1), (2, 2), (4, 3)])
def test_prompts_may_be_read_part_by_part(rng, tensor_parallel, at_once):
    """Five prompts, one, two or three at a time: the weights of a block are loaded once."""
    config = small_config(tensor_parallel, batch=5, **SIZES)
    images, prompts = pictures(rng, 5), random_prompts(rng, 5, 6)
    with open_session(config, "cached") as session:
        whole = continued(session, config, images, prompts, 4)
    config.transformer.execution.prompts_at_once = at_once
    with open_session(config, "cached") as session:
        parts = continued(session, config, images, prompts, 4)
    for ours, expected in zip(parts, whole, strict=True):
        assert ours.generated_ids == expected.generated_ids
        assert_close(ours.logits, expected.logits, FLOAT32)
