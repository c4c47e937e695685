"""Checkpoints of a run: whole or absent, in the published layout, read by the application."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from execution.runs import words_host
from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from tests.small_configs import small_config
from tests.tolerances import FLOAT32
from tests.training.test_adapters import randomise
from training.checkpoint import (
    STATE_FILE,
    export_model,
    find_training_state,
    keep_tokenizer,
    save_checkpoint,
    step_of,
)
from training.model import Magma, caption_labels
from training.weights import load_magma
from utils.checkpoint import open_checkpoint
from utils.checkpoint_files import PUBLISHED_FILE
from utils.errors import UserError
from utils.tokenizer import load_tokenizer


@pytest.fixture
def model(rng) -> Magma:
    model = Magma(small_config(image_resolution=64))
    randomise(model, torch.Generator().manual_seed(int(rng.integers(1 << 30))))
    return model.eval().requires_grad_(False)


def same(first: Magma, second: Magma) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_what_is_saved_is_loaded_again(model: Magma, tmp_path: Path):
    moments = {"optimiser": {"state": {0: torch.arange(3.0)}}, "scaler": None}
    folder = save_checkpoint(tmp_path / "run", 7, model.state_dict(), moments)
    for path in (tmp_path / "run", folder, folder / PUBLISHED_FILE):
        other = Magma(model.config)
        load_magma(other, path)
        assert same(model, other)
        assert step_of(path) == 7
        state = find_training_state(path)
        assert state["step"] == 7
        assert torch.equal(state["optimiser"]["state"][0], torch.arange(3.0))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == [folder.name]


def test_the_newest_checkpoint_is_the_latest(model: Magma, tmp_path: Path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model.state_dict(), {})
    assert (tmp_path / "latest").read_text() == "global_step2"
    assert {p.name for p in tmp_path.iterdir()} == {"latest", "global_step1", "global_step2"}


def test_a_checkpoint_that_fails_leaves_the_last_one(
    model: Magma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path, 1, model.state_dict(), {})

    def fail(value: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="no space left"):
        save_checkpoint(tmp_path, 2, model.state_dict(), {})
    monkeypatch.undo()
    assert find_training_state(tmp_path)["step"] == 1
    save_checkpoint(tmp_path, 2, model.state_dict(), {})
    assert find_training_state(tmp_path)["step"] == 2


def test_the_published_file_has_its_aliases_and_levels(model: Magma, tmp_path: Path):
    folder = save_checkpoint(tmp_path, 3, model.state_dict(), {})
    content = torch.load(folder / PUBLISHED_FILE, weights_only=True)
    module = content["module"]
    assert content["global_step"] == 3
    wte = module["lm.transformer.wte.weight"]
    assert module["word_embedding.weight"].data_ptr() == wte.data_ptr()
    name = "transformer.1.attn.attention.q_proj.weight"
    assert module[name].data_ptr() == module[f"lm.{name.replace('.1.', '.h.1.')}"].data_ptr()
    assert all(tensor.is_contiguous() for tensor in module.values())


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_state_is_named(model: Magma, tmp_path: Path, content):
    folder = save_checkpoint(tmp_path, 3, model.state_dict(), {})
    if content is None:
        torch.save({"no": "step"}, folder / STATE_FILE)
    else:
        (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(
        UserError, match=r"training_state\.pt: the state of the training is damaged"
    ):
        find_training_state(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_exported_model_is_a_valid_checkpoint(model: Magma, tmp_path: Path, name, dtype):
    export_model(model.state_dict(), tmp_path / name, dtype)
    checkpoint = open_checkpoint(tmp_path / name, model.config)
    assert checkpoint.dtype("lm.lm_head.weight") == str(dtype).removeprefix("torch.")
    expected = model.lm.lm_head.weight.to(dtype).numpy()
    assert np.array_equal(checkpoint["lm.lm_head.weight"], expected)


def test_the_tokenizer_is_found_beside_a_checkpoint(tokenizer, tmp_path: Path):
    keep_tokenizer(tmp_path, tokenizer)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode("näher <|image|> x") == tokenizer.encode("näher <|image|> x")


@pytest.mark.parametrize(
    "modes",
    [
        ("normal", None),
        (None, None),
        ("normal", "normal"),
        ("parallel", "parallel"),
        ("scaled_parallel", "scaled_parallel"),
    ],
)
def test_the_application_s_loss_on_a_trained_checkpoint_is_the_training_model_s(
    rng, tmp_path: Path, modes
):
    eos, b = 3, 2
    mlp, attention = modes
    config = small_config(
        image_resolution=64, batch=b, adapter_mode=mlp, attention_adapter_mode=attention
    )
    model = Magma(config)
    randomise(model, torch.Generator().manual_seed(int(rng.integers(1 << 30))))
    folder = save_checkpoint(tmp_path, 1, model.eval().state_dict(), {})
    pixels = rng.standard_normal((b, 3, 64, 64)).astype(np.float32)
    ids = rng.integers(eos + 1, 106, (b, config.text_tokens))
    ids[1, 5:] = eos
    labels = caption_labels(torch.from_numpy(ids), eos)
    with torch.no_grad():
        expected = float(model(torch.from_numpy(ids), labels, torch.from_numpy(pixels)))

    session = inference(config, scheme="recompute")
    load_weights(session, model_weights(config, open_checkpoint(folder, config)))
    with session:
        inputs = {session.inputs.words: words_host(config, ids), session.inputs.image: pixels}
        logits = np.asarray(session.run(inputs)[session.outputs.logits], np.float32)
    logits = torch.from_numpy(logits.reshape(b, config.total_tokens, -1).copy())
    first = config.image_tokens - 1
    predicted = logits[:, first : first + ids.shape[1]]
    found = float(cross_entropy(predicted.flatten(0, 1), labels.flatten()))
    assert found == pytest.approx(expected, abs=FLOAT32)
