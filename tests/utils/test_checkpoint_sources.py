"""Weights where no checkpoint is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.parsing import load_preset
from utils import checkpoint_sources
from utils.checkpoint import open_checkpoint
from utils.checkpoint_sources import published_checkpoint, random_checkpoint
from utils.errors import UserError


def test_random_checkpoint_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "made"))
    config = load_preset("tiny")
    path = random_checkpoint(config)
    open_checkpoint(path, config)
    before = path.stat().st_mtime_ns
    config.seed += 1
    assert random_checkpoint(config) == path
    assert path.stat().st_mtime_ns == before
    config.transformer.layers = 3
    assert random_checkpoint(config) != path


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: cannot make the folder .* set DATASETS_DIR"):
        random_checkpoint(load_preset("tiny"))


def test_published_checkpoint_is_for_its_own_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_sources, "fetch_checkpoint", lambda: tmp_path / "published.pt")
    assert published_checkpoint(load_preset("magma_v1_1024")) == tmp_path / "published.pt"
    with pytest.raises(UserError, match="published checkpoint has other sizes"):
        published_checkpoint(load_preset("tiny"))
