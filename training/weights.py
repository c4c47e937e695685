"""Starting weights: MAGMA checkpoints, Hugging Face's GPT-J and CLIP's image encoder.

A tensor that a source should have and lacks, that does not fit, or that has no place in the model
is an error that names it; nothing is skipped silently.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from config.config import MagmaConfig
from training.model import Magma
from utils.checkpoint import open_checkpoint
from utils.checkpoint_files import StoredTensor, open_tensors
from utils.checkpoint_layout import canonical_name, embedding_row_counts, is_ignored
from utils.errors import UserError

# Parts of the names of the model's parameters -> of the published checkpoint's.
_PUBLISHED = (
    (re.compile(r"\.([kvq]_proj|out_proj)\."), r".attention.\1."),
    (re.compile(r"\.fc_in\."), ".c_fc."),
    (re.compile(r"\.fc_out\."), ".c_proj."),
)

# What wrapping a part with an adapter put into the names of transformers' GPT-J.
_WRAPPED = re.compile(r"(\.attn)\.(?:attn_block|module)\.|(\.mlp)\.(?:0|module)\.(?=fc_)")
_ADAPTER = re.compile(r"\.adapter(\.|_scale)")

# What the files hold that is computed anew, or that MAGMA leaves out.
_MAGMA_BUFFERS = re.compile(r"\.attention\.(bias|masked_bias|scale_attn|sin|cos)$")
_GPTJ_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias|embed_positions)$")
_ATTENTION_POOL = re.compile(r"^attnpool\.")


def published_name(name: str) -> str:
    """The name that the published checkpoint gives to a tensor of the model's state dict."""
    for pattern, replacement in _PUBLISHED:
        name = pattern.sub(replacement, name)
    return name


def load_magma(model: Magma, path: str | os.PathLike[str]) -> None:
    """Loads a MAGMA checkpoint of any form that `utils.checkpoint` reads, in place.

    Raises:
        UserError: no checkpoint, other adapters, other sizes, or missing tensors.
    """
    layout = open_checkpoint(path).layout
    if layout.describe() != model.layout.describe():
        raise UserError(
            f"{path}: its adapter layout is {layout.describe()}, the configuration asks for "
            f"{model.layout.describe()}; set adapter_config to what the checkpoint has"
        )
    stored = {canonical_name(n): t for n, t in open_tensors(path).items() if not is_ignored(n)}
    own = model.state_dict()
    places = {published_name(name): tensor for name, tensor in own.items()}
    _fill(path, places, _without(stored, _MAGMA_BUFFERS), model.config)


def load_gptj(model: Magma, folder: str | os.PathLike[str]) -> None:
    """Loads the language model from a Hugging Face GPT-J folder, in place; adapters stay.

    Raises:
        UserError: no GPT-J, or one of other sizes.
    """
    _check_gptj_config(Path(folder), model.config)
    stored = {
        re.sub(r"^(?=(h|wte|ln_f)\.)", "transformer.", name): tensor
        for name, tensor in open_tensors(folder).items()
    }
    places = {
        _WRAPPED.sub(r"\1\2.", name): tensor
        for name, tensor in model.lm.state_dict().items()
        if not _ADAPTER.search(name)
    }
    _fill(folder, places, _without(stored, _GPTJ_BUFFERS), model.config)


def load_clip(model: Magma, path: str | os.PathLike[str]) -> None:
    """Loads the image encoder from a file with a whole CLIP or its visual half, in place.

    Raises:
        UserError: it holds no such encoder, or one of other sizes.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in open_tensors(path).items()}
    visual = "visual."
    if any(name.startswith(visual) for name in tensors):
        tensors = {n.removeprefix(visual): t for n, t in tensors.items() if n.startswith(visual)}
    places = model.image_prefix.enc.state_dict()
    _fill(path, places, _without(tensors, _ATTENTION_POOL), model.config)


def _without(
    stored: Mapping[str, StoredTensor], unused: re.Pattern[str]
) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in stored.items() if not unused.search(name)}


def _fill(
    path: str | os.PathLike[str],
    places: Mapping[str, torch.Tensor],
    stored: Mapping[str, StoredTensor],
    config: MagmaConfig,
) -> None:
    """Copies each stored tensor into the place of its name; every place needs one, and inversely.

    The word embedding may have more rows, which are cut, or lack the image token's, which stays.
    """
    needed = [name for name in places if not name.endswith("num_batches_tracked")]
    for what, names in (
        ("lacks", [name for name in needed if name not in stored]),
        ("has no place in the model for", [name for name in stored if name not in places]),
    ):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise UserError(f"{path}: {what} {shown}; is it of this model, and of these sizes?")
    wrong = [
        f"{name} is {stored[name].shape}, the configuration says {tuple(place.shape)}"
        for name, place in places.items()
        if name in stored and not _fits(name, stored[name].shape, tuple(place.shape), config)
    ]
    if wrong:
        raise UserError(
            f"{path}: holds a model of other sizes: {wrong[0]} ({len(wrong)} such tensors); "
            "set the model's sizes to those of the file"
        )
    with torch.no_grad():
        for name, place in places.items():
            if name in stored:
                array = torch.tensor(stored[name].read()).reshape(-1, *place.shape[1:])
                rows = slice(min(len(array), len(place))) if place.ndim else ...
                place[rows].copy_(array[rows] if place.ndim else array.reshape(()))


def _fits(name: str, found: tuple[int, ...], wanted: tuple[int, ...], config: MagmaConfig) -> bool:
    if name.endswith("wte.weight"):
        return found[:1] in [(n,) for n in embedding_row_counts(config)] and found[1:] == wanted[1:]
    return found == wanted or {found, wanted} == {(), (1,)}


def _check_gptj_config(folder: Path, config: MagmaConfig) -> None:
    """Checks what shapes of tensors do not show."""
    file = (folder if folder.is_dir() else folder.parent) / "config.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kind = found.get("model_type", "gptj")
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{file}: not the configuration of a model: {error}") from error
    if kind != "gptj":
        raise UserError(f"{file}: the model is of type {kind!r}; expected 'gptj'")
    attention = config.transformer.attention
    for key, wanted in (("n_head", attention.heads), ("rotary_dim", attention.rotary_dim)):
        if found.get(key, wanted) != wanted:
            raise UserError(
                f"{file}: {key} is {found[key]}, the configuration says {wanted}; "
                "set the model's sizes to those of the folder"
            )
