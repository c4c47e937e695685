"""Sessions of small configurations with random weights, and the same model in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import popxl_addons as addons
import pytest
import torch

from config.config import MagmaConfig
from execution.cached import RunKind
from execution.prompts import Embedded, Picture, Prompt
from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from tests.reference.magma import ReferenceMagma
from tests.small_configs import small_config
from utils.checkpoint_writer import write_random_checkpoint
from utils.random_tensors import RandomTensors

WEIGHTS_SEED = 5
VOCABULARY = 106
# 4 image tokens, and lengths of prompts on both sides of a bucket's end.
SIZES = {"image_resolution": 64, "text_tokens": 24}


def open_session(config: MagmaConfig, scheme: str) -> addons.TaskSession:
    """A session with random weights, the same for all configurations of equal sizes."""
    session = inference(config, scheme=scheme)
    tensors = RandomTensors(config, WEIGHTS_SEED, str(config.transformer.precision))
    load_weights(session, model_weights(config, tensors))
    return session


def reference_model(folder: Path, **sizes: Any) -> ReferenceMagma:
    """The same model in PyTorch, of small configurations of some sizes."""
    path = folder / "weights.pt"
    config = small_config(**sizes)
    write_random_checkpoint(path, config, seed=WEIGHTS_SEED, dtype="float32")
    return ReferenceMagma.from_checkpoint(path, config)


def pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Preprocessed-looking pictures: patches of colour under noise."""
    patches = np.kron(rng.normal(size=(count, 3, 4, 4)), np.ones((16, 16)))
    return (patches + 0.3 * rng.normal(size=patches.shape)).astype(np.float32)


def embeddings_of(
    reference: ReferenceMagma, images: np.ndarray | None, prompt: Prompt
) -> torch.Tensor:
    """(1, positions, h) of a prompt of pictures, embeddings and words in any order."""
    pieces = [torch.empty(1, 0, reference.proj.out_features)]
    for item in prompt:
        if isinstance(item, Picture):
            assert images is not None
            pieces.append(reference.embed_image(torch.from_numpy(images[item.index][None])))
        elif isinstance(item, Embedded):
            pieces.append(torch.from_numpy(item.rows[None]))
        else:
            pieces.append(reference.embed_text(torch.tensor([[item]])))
    return torch.cat(pieces, dim=1)


def logits_of(reference: ReferenceMagma, images: np.ndarray | None, prompt: Prompt) -> torch.Tensor:
    """(positions, v) of such a prompt."""
    with torch.no_grad():
        return reference.lm(inputs_embeds=embeddings_of(reference, images, prompt)).logits[0]


def recorded_kinds(monkeypatch: pytest.MonkeyPatch, session: addons.TaskSession) -> list[RunKind]:
    """A list that grows by the kind of every run of a session of the cached scheme."""
    run, kinds = session.run, []

    def recorded(inputs: dict) -> dict:
        kinds.append(RunKind(int(np.ravel(inputs[session.inputs.kind])[0])))
        return run(inputs)

    monkeypatch.setattr(session, "run", recorded)
    return kinds
