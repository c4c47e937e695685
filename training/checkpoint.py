"""Checkpoints of a run: folders as DeepSpeed writes them, which hold the published file.

::

    save/latest                                      the newest folder's name
    save/global_step500/mp_rank_00_model_states.pt   the model, as the published checkpoint
    save/global_step500/training_state.pt            step and optimiser
    save/vocab.json, merges.txt                      the tokenizer

The inference program reads ``save``, one of its folders, or the file.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.weights import published_name
from utils.checkpoint_files import PUBLISHED_FILE, find_checkpoint
from utils.checkpoint_layout import alias_name
from utils.errors import UserError
from utils.files import atomic_file

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

STATE_FILE = "training_state.pt"
LATEST = "latest"


def published_state(
    state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None, aliases: bool = True
) -> OrderedDict[str, torch.Tensor]:
    """A model's state dict under the names of the published checkpoint.

    Args:
        state: the state dict of a `training.model.Magma`.
        dtype: of all floating tensors; None leaves each as it is.
        aliases: list the tensors that have a second name under it too, sharing storage.
    """
    named = OrderedDict()
    for name, tensor in state.items():
        cast = dtype is not None and tensor.is_floating_point()
        kept = tensor.detach().to("cpu", dtype if cast else None)
        named[published_name(name)] = kept.contiguous()
    if aliases:
        seconds = {alias_name(name): tensor for name, tensor in named.items()}
        named.update((name, tensor) for name, tensor in seconds.items() if name is not None)
    return named


def export_model(
    state: Mapping[str, torch.Tensor], path: str | os.PathLike[str], dtype: torch.dtype
) -> None:
    """Writes a model alone, as a ``.pt`` or, by the name, a ``.safetensors`` file.

    Args:
        state: the state dict of a `training.model.Magma`.
        path: the file, which is complete or absent.
        dtype: of all floating tensors.

    Raises:
        UserError: the file cannot be written.
    """
    if not os.fspath(path).endswith(".safetensors"):
        _save(path, {"module": published_state(state, dtype)})
        return
    from safetensors.torch import save

    tensors = published_state(state, dtype, aliases=False)
    data = save({name: t.contiguous() for name, t in tensors.items()}, {"format": "pt"})
    with atomic_file(path, len(data)) as file:
        file.write(data)


def save_checkpoint(
    folder: Path,
    step: int,
    model_state: Mapping[str, torch.Tensor],
    training_state: Mapping[str, Any],
) -> Path:
    """Writes the checkpoint after so many steps; it appears when complete, or not at all.

    Args:
        folder: the run's folder.
        step: optimiser steps done.
        model_state: the model's state dict.
        training_state: tensors and plain values, whatever resuming needs.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written.
    """
    final = folder / f"global_step{step}"
    partial = folder / f".{final.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        partial.mkdir()
        module = published_state(model_state)
        _save(partial / PUBLISHED_FILE, {"module": module, "global_step": step})
        _save(partial / STATE_FILE, {"step": step, **training_state})
        _remove(final)
        partial.replace(final)
    except OSError as error:
        raise UserError(f"{final}: cannot write the checkpoint: {error.strerror}") from error
    with atomic_file(folder / LATEST) as file:
        file.write(final.name.encode())
    return final


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _save(path: str | os.PathLike[str], value: object) -> None:
    with atomic_file(path) as file:
        torch.save(value, file)


def keep_tokenizer(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    """Writes a tokenizer's files into a folder, where the inference program looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.model.save(str(folder))


def find_training_state(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `save_checkpoint` kept for resuming, beside the model at ``path``; None if nothing.

    Raises:
        UserError: no such checkpoint, or a damaged file.
    """
    file = find_checkpoint(Path(path)).with_name(STATE_FILE)
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        assert isinstance(state["step"], int)
    except Exception as error:  # torch raises many types for damaged files
        raise UserError(
            f"{file}: the state of the training is damaged ({type(error).__name__}); "
            "continue from another checkpoint, or with load_optimizer: false"
        ) from error
    return dict(state)


def step_of(path: str | os.PathLike[str]) -> int:
    """The step that a checkpoint's folder name tells, 0 if it tells none."""
    found = re.fullmatch(r"global_step(\d+)", find_checkpoint(Path(path)).parent.name)
    return int(found[1]) if found else 0
