"""The whole model against the PyTorch reference, from one checkpoint file on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import popxl_addons as addons
import pytest
import torch

from config.config import MAX_POSITIONS, MagmaConfig, Precision
from execution.generate import generate
from execution.runs import words_host
from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from tests.reference.magma import ReferenceMagma
from tests.small_configs import BATCHES, PRECISIONS, TENSOR_PARALLEL, small_config
from tests.tolerances import BY_PRECISION, FLOAT16, FLOAT32, assert_close, relative_error
from utils.checkpoint import open_checkpoint, write_random_checkpoint
from utils.sampling import Sampling

Files = Callable[..., Path]
# The published model's picture, head size and rotary width, in a narrow and shallow network.
LARGE = {"image_resolution": 384, "visual_layers": (2, 3, 2, 2), "text_tokens": 24}
LARGE |= {"layers": 4, "hidden_size": 1024, "heads": 4, "rotary_dim": 64}
# Slower ways of running the same program, that leave out what the engine does to be fast.
PLAIN_WAYS = {"POPXL_TORCH_EXECUTOR": "interpreter", "POPXL_TORCH_JOIN_SHARDS": "0"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Options of `small_config` -> a float32 checkpoint file, written once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def write(dtype: str = "float32", **architecture: Any) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.pt"
        write_random_checkpoint(path, small_config(**architecture), seed=5, dtype=dtype)
        return path

    return write


@functools.cache
def reference_of(path: Path, **architecture: Any) -> ReferenceMagma:
    return ReferenceMagma.from_checkpoint(path, small_config(**architecture))


def pictures(rng: np.random.Generator, batch: int, side: int) -> np.ndarray:
    """Preprocessed-looking pictures: patches of colour under noise, [b, 3, side, side]."""
    patches = np.kron(rng.normal(size=(batch, 3, 4, 4)), np.ones((side // 4, side // 4)))
    return (patches + 0.3 * rng.normal(size=patches.shape)).astype(np.float32)


def random_ids(rng: np.random.Generator, config: MagmaConfig) -> np.ndarray:
    """[b, t], with the first and the last row of the embedding among them."""
    rows = config.transformer.embedding.real_vocab_size
    ids = rng.integers(0, rows, (config.batch, config.text_tokens))
    ids[0, 1:3] = 0, rows - 1
    return ids


def open_session(config: MagmaConfig, path: Path) -> addons.TaskSession:
    session = inference(config)
    load_weights(session, model_weights(config, open_checkpoint(path, config)))
    return session


def run(
    session: addons.TaskSession, config: MagmaConfig, pixels: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """[b, s, v] float32 of an entered session."""
    r = config.tensor_parallel
    image = pixels.astype(config.visual.precision.value)
    image = np.broadcast_to(image, (r, *image.shape)) if r > 1 else image
    inputs = {session.inputs.words: words_host(config, ids), session.inputs.image: image}
    logits = session.run(inputs)[session.outputs.logits]
    assert logits.dtype == config.transformer.precision.value
    joined = np.concatenate(list(logits), axis=-1) if r > 1 else logits
    return joined.reshape(config.batch, config.total_tokens, -1).astype(np.float32)


def our_logits(config: MagmaConfig, path: Path, pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[b, s, v] of a session made for this."""
    with open_session(config, path) as session:
        return run(session, config, pixels, ids)


def their_logits(reference: ReferenceMagma, pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return reference.logits(torch.from_numpy(pixels), torch.from_numpy(ids)).numpy()


def check_against_reference(
    files: Files,
    rng: np.random.Generator,
    tensor_parallel: int,
    precision: str,
    batch: int,
    **architecture: Any,
) -> None:
    config = small_config(tensor_parallel, precision, batch, **architecture)
    path = files(**architecture)
    pixels = pictures(rng, batch, config.visual.image_resolution)
    ids = random_ids(rng, config)
    expected = their_logits(reference_of(path, **architecture), pixels, ids)
    assert expected.shape == (batch, config.total_tokens, 116)
    assert_close(our_logits(config, path, pixels, ids), expected, BY_PRECISION[precision])


@pytest.mark.parametrize("image_resolution", [48, 96])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_logits(files, rng, tensor_parallel, precision, batch, image_resolution):
    check_against_reference(
        files, rng, tensor_parallel, precision, batch, image_resolution=image_resolution
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_of_a_large_picture(files, rng, precision):
    check_against_reference(files, rng, 2, precision, 1, **LARGE)


@pytest.mark.long
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_logits_of_large_pictures(files, rng, tensor_parallel, precision, batch):
    check_against_reference(files, rng, tensor_parallel, precision, batch, **LARGE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "architecture",
    [
        {"adapter_layer_norm": True},
        {"adapter_mode": None},
        {"adapter_mode": "normal", "attention_adapter_mode": "normal"},
        {"adapter_mode": "scaled_parallel", "attention_adapter_mode": "parallel"},
        {"layers": 1},
        {"layers": 5},
    ],
    ids=str,
)
def test_logits_of_other_architectures(files, rng, precision, architecture):
    check_against_reference(files, rng, 2, precision, 2, **architecture)


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_behind_the_published_encoder(files, rng, precision):
    """All forty blocks at full width: what float16 loses there adds up."""
    encoder = {"visual_layers": (6, 8, 18, 8), "visual_width": 96}
    check_against_reference(files, rng, 4, precision, 1, **{**LARGE, **encoder})


@pytest.mark.parametrize("visual", PRECISIONS)
def test_encoder_and_language_model_have_precisions_of_their_own(files, rng, visual):
    text = "float16" if visual == "float32" else "float32"
    config = small_config(2, text, image_resolution=96)
    config.visual.precision = Precision(visual)
    path = files(image_resolution=96)
    pixels, ids = pictures(rng, 1, 96), random_ids(rng, config)
    expected = their_logits(reference_of(path, image_resolution=96), pixels, ids)
    assert_close(our_logits(config, path, pixels, ids), expected, FLOAT16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_of_all_positions(files, rng, precision):
    """2048 positions, against float64: angles of transformers are float32, and wrong by 1e-4."""
    architecture = {"image_resolution": 96, "text_tokens": MAX_POSITIONS - 9, "rotary_dim": 16}
    config = small_config(2, precision, **architecture)
    path = files(**architecture)
    reference = ReferenceMagma.from_checkpoint(path, config, torch.float64)
    pixels, ids = pictures(rng, 1, 96), random_ids(rng, config)
    expected = their_logits(reference, pixels, ids)
    assert expected.shape[1] == MAX_POSITIONS
    assert_close(our_logits(config, path, pixels, ids), expected, BY_PRECISION[precision])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_greedy_text_equals_the_references(files, rng, tensor_parallel, batch):
    architecture = {"image_resolution": 96, "text_tokens": 24}
    config = small_config(tensor_parallel, "float32", batch, **architecture)
    path = files(**architecture)
    pixels = pictures(rng, batch, 96)
    prompts = rng.integers(0, 106, (batch, 5))
    expected = reference_of(path, **architecture).greedy(
        torch.from_numpy(pixels), torch.from_numpy(prompts), 20
    )
    # Pads and ends with an id that the text does not have, so all of it is generated.
    eos = next(i for i in range(106) if i not in expected)
    with open_session(config, path) as session:
        results = generate(
            session, config, pixels, prompts.tolist(), Sampling(temperature=0), 20, eos
        )
    assert [result.generated_ids for result in results] == expected.tolist()


def test_greedy_text_follows_the_picture(files, rng):
    """Text that ignores the picture would make the test above easy."""
    config = small_config(image_resolution=96, text_tokens=24)
    reference = reference_of(files(image_resolution=96, text_tokens=24), image_resolution=96)
    pixels = pictures(rng, 16, 96)
    ids = np.repeat(random_ids(rng, config), 16, axis=0)
    logits = their_logits(reference, pixels, ids[:, :6])[:, -1]
    assert relative_error(logits[1:], np.broadcast_to(logits[:1], logits[1:].shape)) > FLOAT16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensor_parallel_degrees_agree(files, rng, precision):
    path = files(image_resolution=96)
    configs = [small_config(r, precision, 2, image_resolution=96) for r in TENSOR_PARALLEL]
    pixels, ids = pictures(rng, 2, 96), random_ids(rng, configs[0])
    one, *others = (our_logits(config, path, pixels, ids) for config in configs)
    for other in others:
        assert_close(other, one, BY_PRECISION[precision])


def test_sequences_of_a_batch_are_independent(files, rng):
    path = files(image_resolution=96)
    double, single = (small_config(2, batch=b, image_resolution=96) for b in (2, 1))
    pixels, ids = pictures(rng, 2, 96), random_ids(rng, double)
    together = our_logits(double, path, pixels, ids)
    with open_session(single, path) as session:
        for k in range(2):
            alone = run(session, single, pixels[k : k + 1], ids[k : k + 1])
            assert_close(together[k : k + 1], alone, FLOAT32)


def test_slicing_the_queries_changes_nothing(files, rng):
    path = files(image_resolution=96)
    whole, sliced = (
        small_config(2, image_resolution=96, attention_serialisation=n) for n in (1, 4)
    )
    pixels, ids = pictures(rng, 1, 96), random_ids(rng, whole)
    expected = our_logits(whole, path, pixels, ids)
    assert_close(our_logits(sliced, path, pixels, ids), expected, FLOAT32)


@pytest.mark.parametrize("setting", PLAIN_WAYS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_engines_agree(files, rng, monkeypatch, tensor_parallel, precision, setting):
    """Replicas at once or one by one, shards joined or apart."""
    path = files(image_resolution=96)
    config = small_config(tensor_parallel, precision, 2, image_resolution=96)
    pixels, ids = pictures(rng, 2, 96), random_ids(rng, config)
    fast = our_logits(config, path, pixels, ids)
    monkeypatch.setenv(setting, PLAIN_WAYS[setting])
    plain = our_logits(config, path, pixels, ids)
    assert_close(fast, plain, BY_PRECISION[precision])


def test_a_half_precision_file_gives_the_rounded_model(files, rng):
    """The float16 file of a seed holds the rounded numbers of the float32 file."""
    config = small_config(2, "float16")
    pixels, ids = pictures(rng, 1, 48), random_ids(rng, config)
    single, half = (our_logits(config, files(dtype), pixels, ids) for dtype in PRECISIONS)
    np.testing.assert_array_equal(single, half)


@pytest.fixture(scope="module")
def entered(files) -> Iterator[tuple[MagmaConfig, addons.TaskSession, dict[str, np.ndarray]]]:
    config = small_config(2, image_resolution=96)
    checkpoint = open_checkpoint(files(image_resolution=96), config)
    arrays = model_weights(config, checkpoint)
    with inference(config) as session:
        load_weights(session, arrays)
        yield config, session, arrays


def test_every_weight_matters(entered, rng):
    """A weight whose change is lost in the tolerance would not be tested by this file."""
    config, session, arrays = entered
    pixels, ids = pictures(rng, 1, 96), random_ids(rng, config)
    before = run(session, config, pixels, ids)
    variables = session.state.fwd.to_dict()
    unnoticed = []
    for key, array in arrays.items():
        changed = array * rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)
        session.write_variables_data({variables[key]: changed})
        after = run(session, config, pixels, ids)
        if relative_error(after, before) < 2 * FLOAT32:
            unnoticed.append(key)
        session.write_variables_data({variables[key]: array})
    np.testing.assert_array_equal(run(session, config, pixels, ids), before)
    assert unnoticed == []
