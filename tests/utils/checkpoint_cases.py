"""Files that tests of the checkpoint's reader share."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from config.config import MagmaConfig
from utils.checkpoint import open_checkpoint
from utils.errors import UserError

State = OrderedDict[str, torch.Tensor]


def canonical(state: State) -> State:
    return OrderedDict((n, t) for n, t in state.items() if n.startswith(("lm.", "image_prefix.")))


def saved(folder: Path, content: object, name: str = "model.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refusal(path: Path | str, config: MagmaConfig | None = None) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(UserError) as error:
        open_checkpoint(path, config)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def save_sharded(folder: Path, state: State, suffix: str) -> Path:
    names = list(state)
    files = {}
    for i in range(3):
        part = {n: state[n] for n in names[i::3]}
        file = f"model-{i}.{suffix}"
        if suffix == "safetensors":
            safetensors.torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        files.update(dict.fromkeys(part, file))
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index
