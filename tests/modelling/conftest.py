"""One random checkpoint file per architecture, with the reference that reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.reference.magma import ReferenceMagma
from tests.small_configs import small_config
from utils.checkpoint import Checkpoint, open_checkpoint, write_random_checkpoint


class Pair(NamedTuple):
    """The same weights, from the same file, read by both sides."""

    tensors: Checkpoint
    reference: ReferenceMagma


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Options of `small_config` that decide the architecture -> a checkpoint and its reference."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def make(**architecture: Any) -> Pair:
        config = small_config(**architecture)
        path = folder / f"{len(list(folder.iterdir()))}.pt"
        write_random_checkpoint(path, config, seed=11, dtype="float32")
        reference = ReferenceMagma.from_checkpoint(path, config)
        return Pair(open_checkpoint(path, config), reference)

    return make
