"""Where weights come from when no checkpoint is named: shipped, made at random, or downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from config.config import MagmaConfig
from config.parsing import load_preset
from utils.checkpoint_layout import expected_tensors
from utils.checkpoint_writer import write_random_checkpoint
from utils.download import checkpoint_folder, fetch_checkpoint
from utils.errors import UserError

RELEASE_PRESET = "magma_v1_500"
"""A preset with the sizes of the published checkpoint."""

RANDOM_PRESET = "tiny"
"""The preset that has random weights."""

SHIPPED_PRESET = "world"
"""The preset of the model that is part of this repository."""

_SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "models" / SHIPPED_PRESET

Shapes = dict[str, tuple[int, ...]]


def checkpoint_of(preset: str, config: MagmaConfig) -> Path:
    """The checkpoint of a preset where none is named.

    Raises:
        UserError: the published checkpoint has other sizes than the configuration, or cannot be
            downloaded; or the random one cannot be written.
    """
    if preset == SHIPPED_PRESET:
        return _SHIPPED_FOLDER
    return (random_checkpoint if preset == RANDOM_PRESET else published_checkpoint)(config)


def random_checkpoint(config: MagmaConfig) -> Path:
    """The file of a random checkpoint of these sizes, made once and kept in the cache folder.

    Raises:
        UserError: no space left, or the folder cannot be written.
    """
    dtype = str(config.visual.precision)
    content = json.dumps([dtype, _shapes(config)], sort_keys=True).encode()
    folder = checkpoint_folder()
    path = folder / f"random-{hashlib.sha256(content).hexdigest()[:12]}.pt"
    try:
        if path.is_file():
            return path
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot make the folder for the random checkpoint ({error.strerror}); "
            "set DATASETS_DIR to a folder that can be written"
        ) from error
    # Not config.seed: that is for the draws, and must not change the model.
    write_random_checkpoint(path, config, seed=0, dtype=dtype)
    return path


def published_checkpoint(config: MagmaConfig) -> Path:
    """The file of the published checkpoint, downloaded if need be.

    Raises:
        UserError: the configuration has other sizes, or the file cannot be downloaded.
    """
    if _shapes(config) != _shapes(load_preset(RELEASE_PRESET)):
        raise UserError(
            "the published checkpoint has other sizes than this configuration; name a checkpoint "
            "of its sizes (--checkpoint, or the argument checkpoint_path)"
        )
    return fetch_checkpoint()


def _shapes(config: MagmaConfig) -> Shapes:
    return {name: entry.shape for name, entry in expected_tensors(config).items()}
