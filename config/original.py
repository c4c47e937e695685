"""Configurations of the original MAGMA: its YAML files, as far as they decide the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from config.config import AdapterConfig, MagmaConfig
from config.parsing import from_mapping, load_preset, preset_names
from utils.errors import UserError

_BASE = "magma_v1_1024"
_ENCODER = "clip_resnet_large"
_ADAPTER_FIELDS = {"adapter_type": "mode", "add_layernorm": "layer_norm"}
"""Fields that have other names here."""

_PLACES = {"mlp": "ff_adapter", "attention": "attention_adapter"}
"""Where adapters are, and our fields."""


def preset_or_original(name: str | os.PathLike[str]) -> MagmaConfig:
    """The configuration of a preset's name or of a YAML file of the original.

    Raises:
        UserError: neither, or a model that this program does not have.
    """
    if str(name) in preset_names():
        return load_preset(str(name))
    path = Path(name)
    # Path's own methods raise for some names.
    if not path.suffix and not os.path.exists(path):  # noqa: PTH110
        path = path.with_suffix(".yml")
    if not os.path.isfile(path):  # noqa: PTH113
        raise UserError(
            f"{os.fspath(name)}: is no file of a configuration and no preset (there are: "
            f"{', '.join(preset_names())})"
        )
    return read_original(path)


def read_original(path: Path) -> MagmaConfig:
    """The configuration that a YAML file of the original describes.

    Only what decides the model is read: encoder, layer norm of the picture's embeddings, adapters.
    Everything else in it is about training.

    Raises:
        UserError: no such YAML, or a model that this program does not have.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot read the configuration: {reason}") from error
    if not isinstance(content, Mapping) or "encoder_name" not in content:
        raise UserError(f"{path}: is no configuration of MAGMA: it has no encoder_name")
    _require(path, content, "encoder_name", _ENCODER)
    _require(path, content, "use_image_embed_layernorm", True)
    config = load_preset(_BASE)
    adapters = content.get("adapter_config") or {}
    for place, field in _PLACES.items():
        setattr(config.transformer, field, _adapter(path, adapters, place))
    config.validate()
    return config


def _adapter(path: Path, adapters: Any, place: str) -> AdapterConfig:
    if not isinstance(adapters, Mapping) or not isinstance(adapters.get(place, {}), Mapping):
        raise UserError(f"{path}: adapter_config is {adapters!r}; expected fields of {place}")
    others = adapters.keys() - _PLACES.keys()
    if others:
        raise UserError(
            f"{path}: has adapters at {', '.join(others)}; this program has them at "
            f"{' and '.join(_PLACES)}"
        )
    if place not in adapters:
        return AdapterConfig(mode=None)
    fields = {_ADAPTER_FIELDS.get(name, name): value for name, value in adapters[place].items()}
    where = f"{path}: adapter_config: {place}"
    adapter: AdapterConfig = from_mapping(AdapterConfig, fields, where)
    return adapter


def _require(path: Path, content: Mapping[str, Any], key: str, value: object) -> None:
    found = content.get(key)
    if found != value:
        raise UserError(f"{path}: {key} is {found!r}; this program has {value!r} only")
