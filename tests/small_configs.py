"""Configurations small enough to run in milliseconds, yet with every part of the real one."""

from __future__ import annotations

from config.config import (
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

TENSOR_PARALLEL = (1, 2, 4)
PRECISIONS = ("float32", "float16")
BATCHES = (1, 2)


def tiny_config(tensor_parallel: int = 2, batch: int = 1, positions: int = 6) -> MagmaConfig:
    """The preset "tiny" with so many text positions."""
    config = load_preset("tiny").with_batch(batch)
    config.transformer.execution.tensor_parallel = tensor_parallel
    config.transformer.sequence_length = positions
    config.validate()
    return config


def small_config(
    tensor_parallel: int = 1,
    precision: str = "float32",
    batch: int = 1,
    image_resolution: int = 48,
    text_tokens: int = 12,
    layers: int = 2,
    hidden_size: int = 64,
    heads: int = 4,
    rotary_dim: int = 6,
    adapter_layer_norm: bool = False,
    adapter_mode: str | None = "normal",
    attention_adapter_mode: str | None = None,
    attention_serialisation: int = 1,
    visual_layers: tuple[int, int, int, int] = (1, 2, 1, 2),
    visual_width: int = 8,
) -> MagmaConfig:
    """A small MagmaConfig.

    The layers of the encoder have one or two blocks, so that both kinds of block occur; the head
    has more columns than the embedding has rows, neither a multiple of 16, and head size, rotary
    width and width of the encoder differ from each other, so that a swapped size shows.
    """
    kind = Precision(precision)
    config = MagmaConfig(
        seed=7,
        visual=ResNetConfig(
            layers=visual_layers,
            width=visual_width,
            image_resolution=image_resolution,
            precision=kind,
            execution=ResNetExecution(micro_batch_size=batch),
        ),
        transformer=GPTJConfig(
            layers=layers,
            hidden_size=hidden_size,
            sequence_length=text_tokens,
            precision=kind,
            embedding=GPTJEmbeddingConfig(vocab_size=116, real_vocab_size=106),
            attention=GPTJAttentionConfig(heads=heads, rotary_dim=rotary_dim),
            ff_adapter=AdapterConfig(
                mode=adapter_mode, downsample_factor=4, layer_norm=adapter_layer_norm
            ),
            attention_adapter=AdapterConfig(
                mode=attention_adapter_mode, downsample_factor=8, layer_norm=adapter_layer_norm
            ),
            execution=GPTJExecution(
                micro_batch_size=batch,
                tensor_parallel=tensor_parallel,
                attention_serialisation=attention_serialisation,
            ),
        ),
    )
    config.validate()
    return config
