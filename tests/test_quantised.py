"""Models whose weights are stored otherwise than they are computed with: the engine's products of
what is stored against the plain numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from tests.small_configs import small_config
from tests.test_agreement import our_logits, pictures, random_ids, run
from tests.tolerances import (
    BFLOAT16_ACTIVATIONS,
    FLOAT16,
    INT4_ACTIVATIONS,
    assert_close,
    relative_error,
)
from utils.checkpoint import open_checkpoint, write_random_checkpoint
from utils.model_folder_rows import Storage
from utils.model_folder_writer import write_model_folder
from utils.quantise import QuantisedWeight


@pytest.mark.parametrize(
    ("format", "tensor_parallel", "precision", "tolerance"),
    [
        ("int8", 1, "float16", FLOAT16),
        ("int8", 2, "float16", FLOAT16),
        ("int4", 1, "float16", INT4_ACTIVATIONS),
        ("int4", 4, "float16", INT4_ACTIVATIONS),
        ("bfloat16", 1, "float32", BFLOAT16_ACTIVATIONS),
        ("bfloat16", 2, "float16", BFLOAT16_ACTIVATIONS),
    ],
)
def test_codes_give_the_logits_of_the_numbers_that_they_stand_for(
    tmp_path: Path,
    rng: np.random.Generator,
    format: str,
    tensor_parallel: int,
    precision: str,
    tolerance: float,
) -> None:
    config = small_config(tensor_parallel, precision, hidden_size=256, heads=4, rotary_dim=8)
    path, folder = tmp_path / "model.pt", tmp_path / "folder"
    write_random_checkpoint(path, config, seed=3, dtype="float16", positions=16)
    storage = Storage(format, ("blocks", "adapters", "head"))
    write_model_folder(open_checkpoint(path, config), config, folder, storage)
    pixels = pictures(rng, 1, config.visual.image_resolution)
    ids = random_ids(rng, config)

    weights = model_weights(config, open_checkpoint(folder, config))
    assert sum(isinstance(array, QuantisedWeight) for array in weights.values()) == 6 * 2 + 1
    session = inference(config)
    load_weights(session, {key: np.array(array) for key, array in weights.items()})
    with session:
        expected = run(session, config, pixels, ids)

    ours = our_logits(config, folder, pixels, ids)
    assert_close(ours, expected, tolerance)
    if format == "bfloat16":
        return  # rounding activations costs as much as rounding weights
    unrounded = our_logits(config, path, pixels, ids)
    assert relative_error(ours, unrounded) > 2 * relative_error(ours, expected)


def test_a_folder_in_bfloat16_is_mapped(tmp_path: Path) -> None:
    config = small_config(2, "float16")
    path, folder = tmp_path / "model.pt", tmp_path / "folder"
    write_random_checkpoint(path, config, dtype="float32")
    write_model_folder(open_checkpoint(path, config), config, folder, Storage("bfloat16"))
    stored = open_checkpoint(folder, config)
    weights = model_weights(config, stored).values()
    matrices = [array for array in weights if isinstance(array, QuantisedWeight)]
    assert len(matrices) == 6 * 2 + 1
    for matrix in matrices:
        owner = matrix.codes
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        assert isinstance(owner, np.memmap)
    # What a folder is converted from is read as numbers.
    write_model_folder(stored, config, tmp_path / "wide", Storage("float32"))
    wide = open_checkpoint(tmp_path / "wide", config)
    for name in stored:
        np.testing.assert_array_equal(wide[name], np.asarray(stored[name]))
