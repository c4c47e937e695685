"""The configuration of MAGMA: an image encoder, a language model and how both are executed.

Every field can be set in ``presets.yml`` and on the command line; sizes that follow from others are
properties. Builders read a configuration and never write to it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum
from typing import Any

import simple_parsing

from utils.errors import UserError

MAX_POSITIONS = 2048
"""Positions of the published model's causal mask and rotary tables, image tokens included."""

ENCODER_STRIDE = 32
"""Pixels along one side of the picture that become one image token."""

SLICE_MULTIPLE = 16
"""Rows of a shard of the word embedding are padded to a multiple of this."""

ADAPTER_MODES = ("normal", "parallel", "scaled_parallel", None)
"""Kinds of adapter; None is a model without."""

KV_DTYPES = ("float16", "float32", "int8")
"""Types in which keys and values can be kept."""

_MAX_SEED = 2**32 - 1


class Precision(StrEnum):
    """Type of weights and activations."""

    float16 = "float16"
    float32 = "float32"


def word_or_none(text: str | None) -> str | None:
    """What a word of the command line or of a preset means ("none": None)."""
    return None if text is None or text.lower() in ("none", "null", "") else text


def number_or_none(text: str | None) -> int | None:
    """The number that a word of the command line means ("none": None)."""
    word = word_or_none(text)
    return None if word is None else int(word)


def _popxl_dtype(precision: Precision) -> Any:
    # popxl is imported here and not above so that reading a configuration stays cheap.
    import popxl

    return {Precision.float16: popxl.float16, Precision.float32: popxl.float32}[precision]


@dataclass
class ResNetExecution:
    """How the image encoder is executed."""

    micro_batch_size: int = 1
    """pictures per run"""
    available_memory_proportion: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    """share of an IPU's memory for temporaries, one value or one per IPU (no effect elsewhere)"""


@dataclass
class ResNetConfig:
    """Image encoder: CLIP's ResNet without attention pool."""

    layers: tuple[int, int, int, int] = (6, 8, 18, 8)
    """residual blocks of each of the four layers"""
    width: int = 96
    """channels after the stem; the encoder returns 32 times as many"""
    image_resolution: int = 384
    """side of the square picture in pixels; (side // 32)^2 image tokens"""
    precision: Precision = Precision.float16
    """type of the encoder's weights and activations"""
    execution: ResNetExecution = field(default_factory=ResNetExecution)

    @property
    def embed_dim(self) -> int:
        """Channels of the encoder's output."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Heads of CLIP's attention pool, which MAGMA leaves out."""
        return self.embed_dim // 64

    @property
    def dtype(self) -> Any:
        """The precision as a popxl dtype."""
        return _popxl_dtype(self.precision)


@dataclass
class GPTJEmbeddingConfig:
    """Vocabulary."""

    vocab_size: int = 50400
    """columns of the head: next-token logits"""
    real_vocab_size: int = 50258
    """rows of the word embedding: tokens of the tokenizer"""

    def rows_per_shard(self, shards: int) -> int:
        """Rows of the word embedding that each of some shards holds, padding included."""
        rows = -(-self.real_vocab_size // shards)
        return SLICE_MULTIPLE * -(-rows // SLICE_MULTIPLE)


@dataclass
class GPTJAttentionConfig:
    """Attention."""

    heads: int = 16
    """attention heads"""
    rotary_dim: int = 64
    """channels of each head, from the first, that carry rotary positions"""
    rotary_positional_embeddings_base: int = 10000
    """base of the rotary angles"""


@dataclass
class AdapterConfig:
    """Adapter at the MLP or at the attention."""

    mode: str | None = simple_parsing.field(default="normal", type=word_or_none)
    """kind of adapter: normal (behind), parallel (beside), scaled_parallel or none"""
    downsample_factor: int = 4
    """hidden size over inner size of the adapter"""
    layer_norm: bool = simple_parsing.field(default=False, negative_prefix="--no-")
    """whether the adapter begins with a layer norm"""


@dataclass
class GPTJExecution:
    """How the language model is executed."""

    micro_batch_size: int = 1
    """prompts per run"""
    available_memory_proportion: tuple[float, ...] = (0.45, 0.45, 0.45, 0.45)
    """share of an IPU's memory for temporaries, one value or one per IPU (no effect elsewhere)"""
    tensor_parallel: int = 4
    """replicas over which heads, inner sizes and vocabulary are cut"""
    prompts_at_once: int | None = simple_parsing.field(default=None, type=number_or_none)
    """prompts that a decoder block reads at a time, with weights loaded once for all of a run
    (default: as many as a memory budget has room for)"""
    attention_serialisation: int = 1
    """slices of the queries that attention computes one after the other"""
    kv_dtype: str | None = simple_parsing.field(default=None, type=word_or_none)
    """type in which keys and values are kept: float16, float32 or int8 (default: the precision)"""


@dataclass
class GPTJConfig:
    """Language model: GPT-J with adapters."""

    layers: int = 28
    """decoder blocks"""
    hidden_size: int = 4096
    """width of the residual stream"""
    # The encoder's tokens take their share of the positions.
    sequence_length: int = MAX_POSITIONS - (ResNetConfig.image_resolution // ENCODER_STRIDE) ** 2
    """text positions: prompt and new tokens, image tokens not counted"""
    precision: Precision = Precision.float16
    """type of the language model's weights and activations"""
    embedding: GPTJEmbeddingConfig = field(default_factory=GPTJEmbeddingConfig)
    attention: GPTJAttentionConfig = field(default_factory=GPTJAttentionConfig)
    ff_adapter: AdapterConfig = field(default_factory=AdapterConfig)
    attention_adapter: AdapterConfig = field(default_factory=lambda: AdapterConfig(mode=None))
    execution: GPTJExecution = field(default_factory=GPTJExecution)

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.attention.heads

    @property
    def inner_size(self) -> int:
        """Channels inside the MLP."""
        return 4 * self.hidden_size

    def inner_of(self, adapter: AdapterConfig) -> int:
        """Channels inside an adapter."""
        return self.hidden_size // adapter.downsample_factor

    @property
    def embedding_rows_per_shard(self) -> int:
        """Rows of the word embedding that one replica holds, padding included."""
        return self.embedding.rows_per_shard(self.execution.tensor_parallel)

    @property
    def dtype(self) -> Any:
        """The precision as a popxl dtype."""
        return _popxl_dtype(self.precision)


@dataclass
class MagmaConfig:
    """MAGMA: image encoder, projection, language model."""

    seed: int = 42
    """seed of random choices; the same seed gives the same text"""
    visual: ResNetConfig = field(default_factory=ResNetConfig)
    transformer: GPTJConfig = field(default_factory=GPTJConfig)

    @property
    def tensor_parallel(self) -> int:
        """Replicas."""
        return self.transformer.execution.tensor_parallel

    @property
    def ipus(self) -> int:
        """Replicas, under the name that PopXL programs use."""
        return self.tensor_parallel

    @property
    def image_tokens(self) -> int:
        """Positions that the picture takes, before the text."""
        return (self.visual.image_resolution // ENCODER_STRIDE) ** 2

    @property
    def text_tokens(self) -> int:
        """Positions that the text can take."""
        return self.transformer.sequence_length

    @property
    def total_tokens(self) -> int:
        """Positions of one sequence: image, then text."""
        return self.image_tokens + self.text_tokens

    @property
    def batch(self) -> int:
        """Sequences per run."""
        return self.transformer.execution.micro_batch_size

    def with_batch(self, batch: int) -> MagmaConfig:
        """A copy for so many sequences per run."""
        config = deepcopy(self)
        config.visual.execution.micro_batch_size = batch
        config.transformer.execution.micro_batch_size = batch
        return config

    def validate(self) -> None:
        """Check every field and how the fields fit together.

        Raises:
            UserError: names the first field that is wrong, its value and what is allowed.
        """
        _check_ranges(self)
        _check_visual(self.visual)
        _check_transformer(self.transformer)
        _check_whole(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict (enums as their text), for logs and files."""
        return asdict(self, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


def _numbers(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a configuration."""
    leaves: list[tuple[str, Any]] = []
    for name, value in vars(config).items():
        path = f"{prefix}{name}"
        leaves += (
            _numbers(value, path + ".")
            if hasattr(value, "__dataclass_fields__")
            else [(path, value)]
        )
    return leaves


def _check_ranges(config: MagmaConfig) -> None:
    for path, value in _numbers(config):
        if path == "seed":
            _require(0 <= value <= _MAX_SEED, f"seed is {value}; it must lie in 0..{_MAX_SEED}")
        elif path.endswith("available_memory_proportion"):
            ok = len(value) > 0 and all(0 <= share <= 1 for share in value)
            _require(ok, f"{path} is {value}; it must be one or more numbers in 0..1")
        elif isinstance(value, int) and not isinstance(value, bool):
            _require(value > 0, f"{path} is {value}; it must be greater than 0")


def _check_visual(visual: ResNetConfig) -> None:
    ok = len(visual.layers) == 4 and all(blocks > 0 for blocks in visual.layers)
    _require(ok, f"visual.layers is {visual.layers}; it must be four numbers greater than 0")
    # The stem halves the channels of its first convolutions and its first stride rounds up.
    _require(visual.width % 2 == 0, f"visual.width is {visual.width}; it must be even")
    side = visual.image_resolution
    ok = side % 2 == 0 and side >= ENCODER_STRIDE
    _require(
        ok, f"visual.image_resolution is {side}; it must be even and at least {ENCODER_STRIDE}"
    )


def _check_transformer(lm: GPTJConfig) -> None:
    heads, rotary = lm.attention.heads, lm.attention.rotary_dim
    _require(
        lm.hidden_size % heads == 0,
        f"transformer.hidden_size {lm.hidden_size} is not a multiple of attention.heads {heads}",
    )
    _require(lm.head_size % 2 == 0, f"the head size {lm.hidden_size}/{heads} must be even")
    _require(
        rotary % 2 == 0 and rotary <= lm.head_size,
        f"transformer.attention.rotary_dim is {rotary}; it must be even and at most the head size "
        f"{lm.head_size}",
    )
    for name in ("ff_adapter", "attention_adapter"):
        adapter: AdapterConfig = getattr(lm, name)
        _require(
            adapter.mode in ADAPTER_MODES,
            f"transformer.{name}.mode is {adapter.mode!r}; it must be one of "
            f"{', '.join(map(str, ADAPTER_MODES[:-1]))} and none",
        )
        _require(
            lm.hidden_size % adapter.downsample_factor == 0,
            f"transformer.hidden_size {lm.hidden_size} is not a multiple of "
            f"{name}.downsample_factor {adapter.downsample_factor}",
        )
    real, padded = lm.embedding.real_vocab_size, lm.embedding.vocab_size
    _require(
        real <= padded,
        f"transformer.embedding.real_vocab_size {real} is greater than vocab_size {padded}",
    )
    kept = lm.execution.kv_dtype
    _require(
        kept is None or kept in KV_DTYPES,
        f"transformer.execution.kv_dtype is {kept!r}; it must be one of {', '.join(KV_DTYPES)}",
    )
    _check_tensor_parallel(lm)


def _check_tensor_parallel(lm: GPTJConfig) -> None:
    tp = lm.execution.tensor_parallel
    cut = {
        "attention.heads": lm.attention.heads,
        "the MLP's inner size": lm.inner_size,
        "embedding.vocab_size": lm.embedding.vocab_size,
    }
    for name in ("ff_adapter", "attention_adapter"):
        adapter: AdapterConfig = getattr(lm, name)
        if adapter.mode is not None:
            cut[f"the inner size of {name}"] = lm.inner_of(adapter)
    for what, size in cut.items():
        _require(
            size % tp == 0,
            f"transformer.execution.tensor_parallel is {tp}; it must divide {what} ({size})",
        )


def _check_whole(config: MagmaConfig) -> None:
    images = config.visual.execution.micro_batch_size
    prompts = config.transformer.execution.micro_batch_size
    _require(
        images == prompts,
        f"visual.execution.micro_batch_size {images} and transformer.execution.micro_batch_size "
        f"{prompts} must be equal",
    )
    _require(
        config.total_tokens <= MAX_POSITIONS,
        f"transformer.sequence_length {config.text_tokens} plus {config.image_tokens} image tokens "
        f"are {config.total_tokens} positions; the model has {MAX_POSITIONS}",
    )
    slices = config.transformer.execution.attention_serialisation
    _require(
        slices <= config.total_tokens,
        f"transformer.execution.attention_serialisation is {slices}; there are only "
        f"{config.total_tokens} positions to slice",
    )
