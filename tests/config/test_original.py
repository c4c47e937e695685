"""Configurations in the original's form, as its v1 and v2 files are described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from config.config import MagmaConfig
from config.original import preset_or_original
from config.parsing import load_preset
from utils.checkpoint_layout import expected_tensors
from utils.errors import UserError

V1: dict[str, Any] = {
    "batch_size": 256,
    "train_steps": 150000,
    "encoder_name": "clip_resnet_large",
    "use_image_embed_layernorm": True,
    "image_embed_dropout_prob": 0.1,
    "image_size": 384,
    "adapter_config": {"mlp": {"adapter_type": "normal", "downsample_factor": 4}},
    "lr": 8e-4,
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "model.yml"
    path.write_text(yaml.safe_dump(V1 | changes))
    return path


def shapes(config: MagmaConfig) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in expected_tensors(config).items()}


def test_the_published_model(tmp_path: Path) -> None:
    path = written(tmp_path)
    for name in (path, str(path), path.with_suffix("")):
        config = preset_or_original(name)
        assert shapes(config) == shapes(load_preset("magma_v1_1024"))


@pytest.mark.parametrize(
    ("mlp", "mode", "factor", "layer_norm"),
    [
        ({"adapter_type": "normal", "downsample_factor": 8, "add_layernorm": True},
         "normal", 8, True),
        ({}, "normal", 4, False),
        (None, None, 4, False),
    ],
)  # fmt: skip
def test_adapters(
    mlp: dict | None, mode: str | None, factor: int, layer_norm: bool, tmp_path: Path
) -> None:
    adapters = {} if mlp is None else {"mlp": mlp}
    adapter = preset_or_original(written(tmp_path, adapter_config=adapters)).transformer.ff_adapter
    assert (adapter.mode, adapter.downsample_factor, adapter.layer_norm) == (
        mode,
        factor,
        layer_norm,
    )


def test_adapters_of_the_second_configuration(tmp_path: Path) -> None:
    places = {
        "mlp": {"adapter_type": "normal", "downsample_factor": 8},
        "attention": {"adapter_type": "normal", "downsample_factor": 8},
    }
    config = preset_or_original(written(tmp_path, adapter_config=places))
    assert shapes(config) == shapes(load_preset("magma_v2_500"))


def test_a_presets_name() -> None:
    assert preset_or_original("tiny") == load_preset("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_name": "clip"}, "encoder_name is 'clip'; this program has 'clip_resnet_large'"),
        ({"use_image_embed_layernorm": False}, "use_image_embed_layernorm is False"),
        ({"adapter_config": {"mlp": {}, "head": {}}}, "adapters at head"),
        ({"adapter_config": {"mlp": {"adapter_type": "beside"}}}, "mode is 'beside'"),
        ({"adapter_config": {"attention": 3}}, "adapter_config"),
        ({"adapter_config": {"mlp": {"downsample_factor": 3}}}, "not a multiple"),
        ({"adapter_config": {"mlp": {"downsample_factor": "x"}}}, "downsample_factor"),
        ({"adapter_config": [1]}, "adapter_config"),
        ({"adapter_config": {"mlp": 3}}, "adapter_config"),
    ],
)
def test_models_that_there_are_not(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        preset_or_original(written(tmp_path, **changes))


@pytest.mark.parametrize("content", ["a: [", "3", "lr: 1", "\xff"])
def test_other_files(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.yml"):
        preset_or_original(path)


def test_neither_file_nor_preset() -> None:
    with pytest.raises(UserError, match=r"nowhere: is no file .* tiny"):
        preset_or_original("nowhere")
