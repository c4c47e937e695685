"""What a configuration derives and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from config.config import (
    MAX_POSITIONS,
    AdapterConfig,
    GPTJAttentionConfig,
    GPTJConfig,
    GPTJEmbeddingConfig,
    GPTJExecution,
    MagmaConfig,
    Precision,
    ResNetConfig,
    ResNetExecution,
)
from config.parsing import load_preset
from tests.small_configs import small_config
from utils.errors import UserError


def test_defaults_are_the_published_model() -> None:
    config = MagmaConfig()
    config.validate()
    assert (config.visual.embed_dim, config.visual.heads) == (3072, 48)
    assert (config.image_tokens, config.total_tokens) == (144, MAX_POSITIONS)
    lm = config.transformer
    assert (lm.head_size, lm.inner_size, lm.inner_of(lm.ff_adapter)) == (256, 16384, 1024)


@pytest.mark.parametrize(("tp", "rows"), [(1, 50272), (2, 25136), (4, 12576), (8, 6288)])
def test_rows_of_an_embedding_shard(tp: int, rows: int) -> None:
    assert GPTJConfig(execution=GPTJExecution(tensor_parallel=tp)).embedding_rows_per_shard == rows


@pytest.mark.parametrize(("side", "tokens"), [(48, 1), (96, 9), (384, 144), (32, 1)])
def test_image_tokens_follow_the_resolution(side: int, tokens: int) -> None:
    assert MagmaConfig(visual=ResNetConfig(image_resolution=side)).image_tokens == tokens


def test_configs_do_not_share_their_parts() -> None:
    first, second = MagmaConfig(), MagmaConfig()
    first.transformer.layers = 1
    assert second.transformer.layers == 28


def test_dtype_is_popxl_s() -> None:
    popxl = pytest.importorskip("popxl")
    assert ResNetConfig(precision=Precision.float32).dtype == popxl.float32
    assert GPTJConfig().dtype == popxl.float16
    assert GPTJConfig() == MagmaConfig().transformer


_LM = {
    "heads do not divide": (
        {"attention": GPTJAttentionConfig(heads=7, rotary_dim=2)},
        "hidden_size 64 is not a multiple of attention.heads 7",
    ),
    "odd head size": (
        {"hidden_size": 72, "attention": GPTJAttentionConfig(heads=8, rotary_dim=2)},
        "head size 72/8 must be even",
    ),
    "rotary above the head size": (
        {"attention": GPTJAttentionConfig(heads=8, rotary_dim=10)},
        "rotary_dim is 10",
    ),
    "odd rotary": ({"attention": GPTJAttentionConfig(heads=8, rotary_dim=3)}, "rotary_dim is 3"),
    "unknown adapter": ({"ff_adapter": AdapterConfig(mode="beside")}, "'beside'"),
    "uneven adapter": ({"ff_adapter": AdapterConfig(downsample_factor=5)}, "downsample_factor 5"),
    "real vocabulary above": (
        {"embedding": GPTJEmbeddingConfig(vocab_size=128, real_vocab_size=130)},
        "real_vocab_size 130 is greater than vocab_size 128",
    ),
    "tp and heads": ({"execution": GPTJExecution(tensor_parallel=16)}, "attention.heads (8)"),
    "tp and vocabulary": (
        {
            "execution": GPTJExecution(tensor_parallel=4),
            "embedding": GPTJEmbeddingConfig(vocab_size=130, real_vocab_size=128),
        },
        "embedding.vocab_size (130)",
    ),
    "tp and adapter": (
        {
            "execution": GPTJExecution(tensor_parallel=4),
            "ff_adapter": AdapterConfig(downsample_factor=32),
        },
        "the inner size of ff_adapter (2)",
    ),
    "zero layers": ({"layers": 0}, "transformer.layers is 0"),
    "negative positions": ({"sequence_length": -3}, "sequence_length is -3"),
    "too long": ({"sequence_length": 2048}, "are 2049 positions; the model has 2048"),
    "memory share": (
        {"execution": GPTJExecution(tensor_parallel=1, available_memory_proportion=(1.5,))},
        "available_memory_proportion",
    ),
    "slices": (
        {"execution": GPTJExecution(tensor_parallel=1, attention_serialisation=66)},
        "only 65 positions",
    ),
}


@pytest.mark.parametrize("case", _LM)
def test_validate_refuses_a_language_model(case: str) -> None:
    changes, message = _LM[case]
    config = load_preset("tiny")
    config.transformer = replace(config.transformer, **changes)
    with pytest.raises(UserError) as caught:
        config.validate()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


_VISUAL = {
    "resolution too small": ({"image_resolution": 30}, "image_resolution is 30"),
    "odd resolution": ({"image_resolution": 33}, "image_resolution is 33"),
    "odd width": ({"width": 11}, "width is 11"),
    "three layers": ({"layers": (1, 1, 1)}, "visual.layers is (1, 1, 1)"),
    "empty layer": ({"layers": (1, 0, 1, 1)}, "visual.layers is (1, 0, 1, 1)"),
    "batches differ": ({"execution": ResNetExecution(micro_batch_size=2)}, "must be equal"),
    "no memory share": (
        {"execution": ResNetExecution(available_memory_proportion=())},
        "visual.execution.available_memory_proportion is ()",
    ),
}


@pytest.mark.parametrize("case", _VISUAL)
def test_validate_refuses_an_encoder(case: str) -> None:
    changes, message = _VISUAL[case]
    config = load_preset("tiny")
    config.visual = replace(config.visual, **changes)
    with pytest.raises(UserError) as caught:
        config.validate()
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_validate_refuses_a_seed(seed: int) -> None:
    with pytest.raises(UserError, match="seed is"):
        replace(load_preset("tiny"), seed=seed).validate()


def test_no_adapter_is_allowed_and_needs_no_even_cut_of_it() -> None:
    config = load_preset("tiny")
    config.transformer.ff_adapter = AdapterConfig(mode=None, downsample_factor=64)
    config.validate()


def test_validate_writes_nothing() -> None:
    config = load_preset("tiny")
    before = copy.deepcopy(config)
    config.validate()
    assert config == before


def test_as_dict_is_plain() -> None:
    content = load_preset("tiny").as_dict()
    assert type(content["visual"]["precision"]) is str
    assert content["transformer"]["execution"]["tensor_parallel"] == 2


def test_another_batch_leaves_the_configuration_alone():
    config = small_config()
    assert config.with_batch(5).batch == 5
    assert config.batch == 1
