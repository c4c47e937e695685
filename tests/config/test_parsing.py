"""Presets and the command line."""

from __future__ import annotations

import argparse

import pytest

from config.config import MagmaConfig, Precision
from config.parsing import from_mapping, load_preset, parse_config, preset_names
from utils.errors import UserError


def _parse(*argv: str, default: str = "tiny") -> MagmaConfig:
    return parse_config(argv, default)[0]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_is_a_new_object(name: str) -> None:
    first = load_preset(name)
    first.transformer.layers += 1
    assert load_preset(name).transformer.layers == first.transformer.layers - 1


@pytest.mark.parametrize(
    ("name", "positions", "visual_share"),
    [("magma_v1_500", 500, (1.0, 1.0, 1.0, 1.0)), ("magma_v1_1024", 1024, (1.0,))],
)
def test_release_presets(name: str, positions: int, visual_share: tuple[float, ...]) -> None:
    config = load_preset(name)
    expected = MagmaConfig(seed=0)
    expected.transformer.sequence_length = positions
    expected.transformer.execution.available_memory_proportion = (0.45,)
    expected.visual.execution.available_memory_proportion = visual_share
    assert config == expected


def test_tiny_preset_fits_the_small_tokenizer() -> None:
    config = load_preset("tiny")
    assert (config.image_tokens, config.tensor_parallel) == (1, 2)
    assert config.transformer.embedding.real_vocab_size == 512


def test_command_line_without_options_is_the_preset() -> None:
    for name in preset_names():
        assert _parse("--config", name) == load_preset(name)
        assert _parse(default=name) == load_preset(name)


def test_bare_and_dotted_names_set_the_same_field() -> None:
    for bare, dotted, value in [
        ("--heads", "--transformer.attention.heads", "4"),
        ("--width", "--visual.width", "16"),
        ("--tensor_parallel", "--transformer.execution.tensor_parallel", "4"),
        ("--vocab_size", "--transformer.embedding.vocab_size", "1024"),
        ("--ff_adapter.mode", "--transformer.ff_adapter.mode", "none"),
    ]:
        assert _parse(bare, value) == _parse(dotted, value) != load_preset("tiny")


def test_every_leaf_is_on_the_command_line() -> None:
    config = load_preset("tiny")
    argv: list[str] = []

    def add(part: object, prefix: str) -> None:
        for name, value in vars(part).items():
            if hasattr(value, "__dataclass_fields__"):
                add(value, f"{prefix}{name}.")
            else:
                values = value if isinstance(value, tuple) else [value]
                argv.extend([f"--{prefix}{name}", *map(str, values)])

    add(config, "")
    assert len([word for word in argv if word.startswith("--")]) == 28
    assert _parse(*argv, default="magma_v1_500") == config


def test_tuples_can_be_set() -> None:
    config = _parse(
        "--visual.layers", "1", "2", "3", "4",
        "--transformer.execution.available_memory_proportion", "0.3", "0.4",
    )  # fmt: skip
    assert config.visual.layers == (1, 2, 3, 4)
    assert config.transformer.execution.available_memory_proportion == (0.3, 0.4)


def test_enum_and_flag() -> None:
    flag = "--ff_adapter.layer_norm"
    config = _parse("--visual.precision", "float16", flag)
    assert config.visual.precision is Precision.float16
    assert config.transformer.ff_adapter.layer_norm is True
    assert _parse(flag, "false").transformer.ff_adapter.layer_norm is False


@pytest.mark.parametrize(
    ("argv", "facts"),
    [
        (["--config", "magma_v1_50"], ["magma_v1_50'", "'magma_v1_500'"]),
        (["--config=tony"], ["'tony'", "did you mean 'tiny'"]),
        (["--config"], ["--config", "expected one argument"]),
        (["--hidden_sise", "64"], ["--hidden_sise", "'--hidden_size'"]),
        (["--visual.widht=8"], ["--visual.widht", "'--visual.width'"]),
        (["--layers", "2"], ["ambiguous", "--visual.layers", "--transformer.layers"]),
        (["--mode", "none"], ["ambiguous", "--ff_adapter.mode", "--attention_adapter.mode"]),
        (["--micro_batch_size", "2"], ["ambiguous", "--visual.execution.micro_batch_size"]),
        (["--transformer.layer", "2"], ["unknown option", "'--transformer.layers'"]),
        (["--heads", "many"], ["--heads", "invalid int value: 'many'"]),
        (["--width", "8.5"], ["--width", "'8.5'"]),
        (["--visual.layers", "1", "1"], ["--visual.layers", "expected 4 arguments"]),
        (["--visual.precision", "bfloat16"], ["--visual.precision", "float16", "float32"]),
        (["--tensor_parallel", "3"], ["tensor_parallel is 3", "attention.heads (8)"]),
        (["--zzzz", "1"], ["unknown option --zzzz", "--help"]),
        (["picture.jpg"], ["picture.jpg"]),
        (["--ff_adapter.mode", "beside"], ["'beside'", "normal"]),
    ],
)
def test_bad_command_lines_are_one_line(argv: list[str], facts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        _parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    for fact in facts:
        assert fact in message


def test_unknown_default_preset_is_one_line_too() -> None:
    with pytest.raises(UserError, match="did you mean 'magma_v1_500'"):
        _parse(default="magma_v1_5000")


def test_options_of_the_program_and_of_jupyter() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--extra", type=float, default=0.5)

    argv = ["-f", "kernel.json", "--extra", "2"]
    config, options = parse_config(argv, "tiny", add)
    assert config == load_preset("tiny")
    assert vars(options) == {"config": "tiny", "extra": 2.0}


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"seeds": 1}, ["unknown field 'seeds'", "'seed'"]),
        ({"visual": {"width": "wide"}}, ["visual: width", "expected int", "'wide'"]),
        ({"visual": {"width": True}}, ["expected int", "True"]),
        ({"visual": 3}, ["expected fields", "3"]),
        ({"visual": {"precision": "float8"}}, ["precision", "'float8'"]),
        ({"visual": {"layers": [1, 2, "3", 4]}}, ["layers", "'3'"]),
    ],
)
def test_bad_presets_are_one_line(values: dict[str, object], facts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(MagmaConfig, values, "preset x")
    for fact in ["preset x", *facts]:
        assert fact in str(caught.value)
