"""The published MAGMA checkpoint as a table: every tensor's name, shape and kind.

Names are *canonical*: the ones under ``lm.`` and ``image_prefix.``. The published file lists the
language model's blocks and word embedding a second time under shorter names (*aliases*), because
the module that wrote it keeps handles on them.

Where the adapters sit shows in the names of the tensors around them, so the layout of a file is
read from its names alone:

=====================  ==========================  ============================
adapters               behind the MLP              behind the attention
=====================  ==========================  ============================
none                   ``mlp.c_fc``                ``attn.attention.q_proj``
normal                 ``mlp.0.c_fc``,             ``attn.attn_block.attention``,
                       ``mlp.1.adapter``           ``attn.adapter``
parallel               ``mlp.module.c_fc``,        ``attn.module.attention``,
                       ``mlp.adapter``             ``attn.adapter``
scaled_parallel        parallel plus               parallel plus
                       ``mlp.adapter_scale``       ``attn.adapter_scale``
=====================  ==========================  ============================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from config.config import MagmaConfig

PUBLISHED_POSITIONS = 2048
"""Positions of the causal mask and of the sine and cosine tables in the published file."""

WORD_EMBEDDING = "lm.transformer.wte.weight"


class Kind(Enum):
    """What a tensor is for, which decides whether a file may lack it."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    RECOMPUTABLE = "recomputable buffer"
    COUNTER = "counter"

    @property
    def required(self) -> bool:
        """Whether the model cannot be built without it."""
        return self in (Kind.PARAMETER, Kind.STATISTIC)


@dataclass(frozen=True)
class TensorEntry:
    """One row of the table.

    Attributes:
        shape: as torch stores it; a linear layer's weight is (out, in).
        kind: parameter, batch-norm statistic, recomputable buffer or counter.
        dtype: "float" (float16, bfloat16 or float32, one for the whole file), "bool" or "int64".
    """

    shape: tuple[int, ...]
    kind: Kind = Kind.PARAMETER
    dtype: str = "float"

    def size_bytes(self, float_bytes: int) -> int:
        """Bytes of the data when a floating value takes ``float_bytes``."""
        count = 1
        for size in self.shape:
            count *= size
        return count * {"float": float_bytes, "bool": 1, "int64": 8}[self.dtype]


@dataclass(frozen=True)
class AdapterSpec:
    """Adapters at one place of a block: ``kind`` is normal, parallel or scaled_parallel."""

    kind: str = "normal"
    inner: int = 0
    layer_norm: bool = False


@dataclass(frozen=True)
class AdapterLayout:
    """Which adapters the blocks have, behind the MLP and behind the attention."""

    mlp: AdapterSpec | None = None
    attention: AdapterSpec | None = None

    def describe(self) -> str:
        """The layout in words, as error messages name it."""
        if self.attention is None and self.mlp is None:
            return "no adapters"
        if self.attention is None and self.mlp is not None and self.mlp.kind == "normal":
            return "v1 (normal MLP adapters)"
        places = [
            f"{spec.kind} {place} adapters"
            for place, spec in (("MLP", self.mlp), ("attention", self.attention))
            if spec is not None
        ]
        both_normal = all(s and s.kind == "normal" for s in (self.mlp, self.attention))
        return f"v2 ({' and '.join(places)})" if both_normal else " and ".join(places)


MLP_PATHS = {
    None: ("mlp", ""),
    "normal": ("mlp.0", "mlp.1.adapter"),
    "parallel": ("mlp.module", "mlp.adapter"),
    "scaled_parallel": ("mlp.module", "mlp.adapter"),
}
ATTENTION_PATHS = {
    None: ("attn.attention", ""),
    "normal": ("attn.attn_block.attention", "attn.adapter"),
    "parallel": ("attn.module.attention", "attn.adapter"),
    "scaled_parallel": ("attn.module.attention", "attn.adapter"),
}
"""Where a block keeps its MLP or attention, and the adapter of it, for each kind of adapter."""

# Surplus names that do no harm: the attention pool that MAGMA removes, a classifier's head.
_IGNORED = re.compile(r"image_prefix\.enc\.attnpool\.|class_head\.")

# Surplus names that give away another model.
_WRONG_MODEL = (
    (re.compile(r"(^|\.)wpe\.weight$"), "learned positions, so GPT-Neo without rotary ones"),
    (re.compile(r"\.ln_2\.(weight|bias)$"), "a second norm in each block, so GPT-Neo or GPT-2"),
    (re.compile(r"\.out_proj\.bias$"), "a bias on the attention's output, so GPT-Neo"),
    (re.compile(r"\.mlp\.fc_in\.|\.attn\.[qkv]_proj\."), "Hugging Face's GPT-J names"),
)

_ALIASES = (
    (re.compile(r"^word_embedding\.weight$"), WORD_EMBEDDING),
    (re.compile(r"^transformer\.(\d+)\."), r"lm.transformer.h.\1."),
    # A language model saved alone lacks the outer prefix.
    (re.compile(r"^transformer\.(?=(?:h|wte|wpe|ln_f)\.)"), "lm.transformer."),
    (re.compile(r"^lm_head\."), "lm.lm_head."),
)


def canonical_name(name: str) -> str:
    """The canonical name of a tensor that a file calls ``name``."""
    for pattern, replacement in _ALIASES:
        found, count = pattern.subn(replacement, name, count=1)
        if count:
            return found
    return name


def alias_name(name: str) -> str | None:
    """The second name of a canonical tensor in the published file, None if it has only one."""
    if name == WORD_EMBEDDING:
        return "word_embedding.weight"
    prefix = "lm.transformer.h."
    return f"transformer.{name.removeprefix(prefix)}" if name.startswith(prefix) else None


def is_ignored(name: str) -> bool:
    """Whether a file may hold ``name`` though no MAGMA model uses it."""
    return _IGNORED.match(name) is not None


def check_family(names: Iterable[str], path: object = "the checkpoint") -> None:
    """Raises UserError if some name shows that the file holds a model of another family."""
    for name in names:
        for pattern, meaning in _WRONG_MODEL:
            if not is_ignored(name) and pattern.search(name):
                raise UserError(
                    f"{path}: holds another model: {name} means {meaning}; "
                    "expected MAGMA (GPT-J with rotary positions, adapters and an image prefix)"
                )


def detect_layout(names: Iterable[str]) -> AdapterLayout:
    """The adapter layout that canonical ``names`` show; inner sizes are not in names and stay 0."""
    block = re.compile(r"^lm\.transformer\.h\.\d+\.")
    rests = {block.sub("", name, count=1) for name in names if block.match(name)}
    return AdapterLayout(mlp=_detect(rests, MLP_PATHS), attention=_detect(rests, ATTENTION_PATHS))


def _detect(rests: set[str], paths: dict[str | None, tuple[str, str]]) -> AdapterSpec | None:
    for kind in ("scaled_parallel", "normal", "parallel"):
        base, adapter = paths[kind]
        marker = adapter + "_scale" if kind == "scaled_parallel" else base + "."
        if any(rest.startswith(marker) for rest in rests):
            return AdapterSpec(kind, layer_norm=f"{adapter}.3.weight" in rests)
    return None


def configured_layout(config: MagmaConfig) -> AdapterLayout:
    """The adapter layout that ``config`` asks for."""
    lm = config.transformer
    specs = (
        None if a.mode is None else AdapterSpec(a.mode, lm.inner_of(a), a.layer_norm)
        for a in (lm.ff_adapter, lm.attention_adapter)
    )
    return AdapterLayout(*specs)


def expected_tensors(
    config: MagmaConfig,
    layout: AdapterLayout | None = None,
    positions: int = PUBLISHED_POSITIONS,
) -> dict[str, TensorEntry]:
    """Every canonical tensor of a checkpoint, in the published order.

    Args:
        config: sizes of the model.
        layout: where the adapters sit; the config's own by default.
        positions: size of the causal mask and of the sine and cosine tables.

    Returns:
        Canonical name to table row. Aliases are not listed: see `alias_name`.
    """
    if layout is None:
        layout = configured_layout(config)
    entries = dict(_language_model(config, layout, positions))
    entries.update(_image_prefix(config))
    return entries


_Rows = Iterator[tuple[str, TensorEntry]]


def _linear(name: str, out_size: int, in_size: int) -> _Rows:
    yield f"{name}.weight", TensorEntry((out_size, in_size))
    yield f"{name}.bias", TensorEntry((out_size,))


def _norm(name: str, size: int) -> _Rows:
    yield f"{name}.weight", TensorEntry((size,))
    yield f"{name}.bias", TensorEntry((size,))


def _language_model(config: MagmaConfig, layout: AdapterLayout, positions: int) -> _Rows:
    model = config.transformer
    hidden = model.hidden_size
    yield WORD_EMBEDDING, TensorEntry((model.embedding.real_vocab_size, hidden))
    for i in range(model.layers):
        block = f"lm.transformer.h.{i}"
        yield from _norm(f"{block}.ln_1", hidden)
        yield from _attention(block, config, layout.attention, positions)
        yield from _mlp(block, hidden, layout.mlp)
    yield from _norm("lm.transformer.ln_f", hidden)
    yield from _linear("lm.lm_head", model.embedding.vocab_size, hidden)


def _attention(
    block: str, config: MagmaConfig, adapter: AdapterSpec | None, positions: int
) -> _Rows:
    hidden = config.transformer.hidden_size
    rotary = config.transformer.attention.rotary_dim
    base, adapter_path = ATTENTION_PATHS[adapter.kind if adapter else None]
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        yield f"{block}.{base}.{name}.weight", TensorEntry((hidden, hidden))
    # Not a bias: the causal mask.
    mask = TensorEntry((1, 1, positions, positions), Kind.RECOMPUTABLE, "bool")
    yield f"{block}.{base}.bias", mask
    for name in ("masked_bias", "scale_attn"):
        yield f"{block}.{base}.{name}", TensorEntry((), Kind.RECOMPUTABLE)
    for name in ("sin", "cos"):
        table = TensorEntry((positions, rotary // 2), Kind.RECOMPUTABLE)
        yield f"{block}.{base}.{name}", table
    if adapter:
        yield from _adapter(f"{block}.{adapter_path}", hidden, adapter)


def _mlp(block: str, hidden: int, adapter: AdapterSpec | None) -> _Rows:
    base, adapter_path = MLP_PATHS[adapter.kind if adapter else None]
    yield from _linear(f"{block}.{base}.c_fc", 4 * hidden, hidden)
    yield from _linear(f"{block}.{base}.c_proj", hidden, 4 * hidden)
    if adapter:
        yield from _adapter(f"{block}.{adapter_path}", hidden, adapter)


def _adapter(path: str, hidden: int, spec: AdapterSpec) -> _Rows:
    first = 1 if spec.layer_norm else 0
    if spec.layer_norm:
        yield from _norm(f"{path}.0", hidden)
    yield from _linear(f"{path}.{first}", spec.inner, hidden)
    yield from _linear(f"{path}.{first + 2}", hidden, spec.inner)
    if spec.kind == "scaled_parallel":
        yield f"{path}_scale", TensorEntry((1,))


def _image_prefix(config: MagmaConfig) -> _Rows:
    visual = config.visual
    encoder = "image_prefix.enc"
    half = visual.width // 2
    for j, (c_out, c_in) in enumerate(((half, 3), (half, half), (visual.width, half)), start=1):
        yield from _conv_norm(f"{encoder}.conv{j}", f"{encoder}.bn{j}", c_out, c_in, 3)
    c_in = visual.width
    for layer, blocks in enumerate(visual.layers, start=1):
        planes = visual.width * 2 ** (layer - 1)
        for j in range(blocks):
            yield from _bottleneck(f"{encoder}.layer{layer}.{j}", planes, c_in, first=j == 0)
            c_in = 4 * planes
    hidden = config.transformer.hidden_size
    yield from _linear("image_prefix.proj", hidden, 32 * visual.width)
    yield from _norm("image_prefix.ln", hidden)


def _bottleneck(path: str, planes: int, c_in: int, *, first: bool) -> _Rows:
    sizes = ((planes, c_in, 1), (planes, planes, 3), (4 * planes, planes, 1))
    for j, (c_out, c, kernel) in enumerate(sizes, start=1):
        yield from _conv_norm(f"{path}.conv{j}", f"{path}.bn{j}", c_out, c, kernel)
    if first:
        shortcut = f"{path}.downsample"
        yield from _conv_norm(f"{shortcut}.0", f"{shortcut}.1", 4 * planes, c_in, 1)


def _conv_norm(conv: str, norm: str, c_out: int, c_in: int, kernel: int) -> _Rows:
    yield f"{conv}.weight", TensorEntry((c_out, c_in, kernel, kernel))
    yield from _norm(norm, c_out)
    yield f"{norm}.running_mean", TensorEntry((c_out,), Kind.STATISTIC)
    yield f"{norm}.running_var", TensorEntry((c_out,), Kind.STATISTIC)
    yield f"{norm}.num_batches_tracked", TensorEntry((), Kind.COUNTER, "int64")


def embedding_row_counts(config: MagmaConfig) -> tuple[int, ...]:
    """Row counts of the word embedding that a file may have.

    The tokenizer's own count; GPT-J's padded one, whose surplus rows are cut; or one row fewer,
    from before the image token was added, which is filled with zeros: that token is never embedded.
    """
    embedding = config.transformer.embedding
    real = embedding.real_vocab_size
    return tuple(dict.fromkeys((real, embedding.vocab_size, real - 1)))


def model_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of the model that canonical ``shapes`` belong to, under the config's field names.

    Sizes whose tensors are absent are left out.
    """
    sizes: dict[str, int] = {}
    blocks = [int(m[1]) for m in (re.match(r"lm\.transformer\.h\.(\d+)\.", n) for n in shapes) if m]
    if blocks:
        sizes["transformer.layers"] = max(blocks) + 1
    for field, name, axis in (
        ("transformer.hidden_size", "lm.transformer.ln_f.weight", 0),
        ("transformer.embedding.vocab_size", "lm.lm_head.weight", 0),
        ("visual.width", "image_prefix.enc.conv3.weight", 0),
    ):
        if len(shapes.get(name, ())) > axis:
            sizes[field] = shapes[name][axis]
    return sizes
