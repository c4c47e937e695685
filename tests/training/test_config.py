"""Settings of a run: names and types are checked, with the nearest name told."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from training.config import AdapterPlaces, TrainConfig, read_config, read_yaml
from utils.checkpoint_layout import AdapterLayout, AdapterSpec
from utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.mark.parametrize(("name", "factor"), [("magma_v1", 4), ("magma_v2", 8)])
def test_the_published_configurations(name, factor):
    config = read_config(read_yaml(CONFIGS / f"{name}.yml"), name)
    spec = AdapterSpec("normal", 4096 // factor)
    attention = spec if name == "magma_v2" else None
    assert config.layout == AdapterLayout(mlp=spec, attention=attention)
    assert config.model.total_tokens == 2048
    assert config.model.transformer.layers == 28
    assert (config.lr, config.image_enc_lr, config.batch_size) == (8e-4, 2e-6, 256)


def test_numbers_and_single_folders_as_people_write_them():
    config = read_config({"lr": "8e-4", "min_lr": 0, "eval_dataset_dir": "c"}, "f")
    assert (config.lr, config.min_lr, config.eval_dataset_dir) == (8e-4, 0.0, ("c",))


def test_adapters_come_from_the_model_unless_named():
    assert read_config({"model": "tiny"}, "f").layout.mlp == AdapterSpec("normal", 16)
    assert read_config({"adapter_config": {}}, "f").layout == AdapterLayout()
    assert read_config({"adapter_config": None}, "f").layout.mlp is not None
    assert AdapterPlaces() == AdapterPlaces(None, None)


def test_a_model_of_one_s_own():
    model = {"transformer": {"layers": 3, "sequence_length": 500, "embedding": {"vocab_size": 600}}}
    model["transformer"]["embedding"]["real_vocab_size"] = 512
    assert read_config({"model": model}, "f").model.transformer.layers == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_stepz": 3}, "unknown field 'train_stepz'; did you mean 'train_steps'"),
        ({"adapter_config": {"mpl": {}}}, "unknown field 'mpl'; did you mean 'mlp'"),
        ({"adapter_config": {"mlp": {"downsample": 4}}}, "did you mean 'downsample_factor'"),
        ({"model": "tny"}, "unknown config 'tny'; did you mean 'tiny'"),
        ({"model": {"transformer": {"layer": 2}}}, "did you mean 'layers'"),
        ({"lr": "fast"}, "lr: expected float, found 'fast'"),
        ({"batch_size": 2.5}, "batch_size: expected int, found 2.5"),
        ({"skip_bad": "yes"}, "skip_bad: expected bool"),
        ({"batch_size": 0}, "batch_size is 0; it must be greater than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"weight_decay": -1}, "weight_decay is -1.0; it must be 0 or greater"),
        ({"image_embed_dropout_prob": 1}, "image_embed_dropout_prob is 1.0"),
        ({"mixed_precision": "fp8"}, "mixed_precision is fp8; it must be one of auto"),
        ({"lr_decay_iters": 50}, "lr_decay_iters is 50; it must be greater than warmup"),
        ({"adapter_config": {"mlp": {"adapter_type": "prefix"}}}, "adapter_type is prefix"),
        ({"adapter_config": {"mlp": {"downsample_factor": 7}}}, "downsample_factor is 7"),
        ({"train_dataset_dir": [3]}, "train_dataset_dir: expected str, found 3"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError) as caught:
        read_config(values, "file.yml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is no YAML"),
        (b"[1]", "expected fields"),
        (b"", "expected fields"),
        (b"\xff", "cannot read"),
        (b"!!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, content, message):
    (tmp_path / "f.yml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "f.yml")


def test_every_field_is_documented():
    from simple_parsing.docstring import get_attribute_docstring

    for entry in fields(TrainConfig):
        assert get_attribute_docstring(TrainConfig, entry.name).docstring_below, entry.name
