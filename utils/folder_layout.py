"""What a model folder holds, as a table: names, shapes and slabs, in the order of execution.

The names are those of `utils.checkpoint_layout` except that of each block queries, keys and values
lie together per head, and the shapes are such that a shard of any degree of tensor parallelism is a
slice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from utils.checkpoint_layout import WORD_EMBEDDING, TensorEntry, expected_tensors

if TYPE_CHECKING:
    from config.config import MagmaConfig

JOINED_PROJECTION = "qkv_proj"
"""What stands for q_proj, k_proj and v_proj."""

QUANTISABLE = {
    "blocks": re.compile(r"lm\.transformer\.h\.\d+\..*\.(qkv_proj|out_proj|c_fc|c_proj)\.weight"),
    "adapters": re.compile(r"lm\.transformer\.h\.\d+\..*\.?adapter\.(0|1|2|3)\.weight"),
    "head": re.compile(r"lm\.lm_head\.weight"),
}
"""Matrices that may be quantised, by the part of the model that they belong to."""

_PHASES = (
    "stem",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
    "projection",
    "embedding",
    "decoder",
    "lm_head",
)
_SLABS = (
    (re.compile(r"image_prefix\.enc\.(layer\d)\.(\d+)\."), r"\1.\2"),
    (re.compile(r"image_prefix\.enc\."), "stem"),
    (re.compile(r"image_prefix\."), "projection"),
    (re.compile(r"lm\.transformer\.wte\."), "embedding"),
    (re.compile(r"lm\.transformer\.h\.(\d+)\."), r"decoder.\1"),
    (re.compile(r"lm\."), "lm_head"),
)


def folder_tensors(config: MagmaConfig) -> dict[str, TensorEntry]:
    """Every tensor of a model folder.

    What the model computes itself is left out. Queries, keys and values are (n, 3, d, h) for n
    heads of size d and hidden size h, and the word embedding ends with rows of zeros.
    """
    lm = config.transformer
    joined = TensorEntry((lm.attention.heads, 3, lm.head_size, lm.hidden_size))
    entries: dict[str, TensorEntry] = {}
    for name, entry in expected_tensors(config).items():
        if name.endswith((".k_proj.weight", ".v_proj.weight")) or not entry.kind.required:
            continue
        if name.endswith(".q_proj.weight"):
            entries[name.replace("q_proj", JOINED_PROJECTION)] = joined
        else:
            entries[name] = entry
    entries[WORD_EMBEDDING] = TensorEntry((folder_embedding_rows(config), lm.hidden_size))
    return dict(sorted(entries.items(), key=lambda item: _place(slab_of(item[0]))))


def folder_embedding_rows(config: MagmaConfig) -> int:
    """Rows of the word embedding in a model folder: enough for every number of shards."""
    embedding, heads = config.transformer.embedding, config.transformer.attention.heads
    return max(r * embedding.rows_per_shard(r) for r in range(1, heads + 1) if heads % r == 0)


def is_folder_name(name: str) -> bool:
    """Whether only model folders hold a tensor of that name."""
    return f".{JOINED_PROJECTION}." in name


def slab_of(name: str) -> str:
    """The slab of a tensor: what one call of one phase loads, such as ``decoder.3``."""
    for pattern, slab in _SLABS:
        found = pattern.match(name)
        if found:
            return found.expand(slab)
    raise ValueError(f"{name} belongs to no phase")


def part_of(name: str) -> str | None:
    """The part of a matrix in `QUANTISABLE`, if it is in one."""
    return next((part for part, names in QUANTISABLE.items() if names.fullmatch(name)), None)


def _place(slab: str) -> tuple[int, ...]:
    """Where a slab stands in the order of execution."""
    phase, *number = slab.split(".")
    return (_PHASES.index(phase), *(int(part) for part in number))
