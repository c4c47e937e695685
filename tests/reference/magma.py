"""An independent MAGMA in PyTorch: what the project's own model is judged against.

It is assembled from transformers' GPT-J, hand-written adapters and open_clip's ResNet, and reads
the published checkpoint with a reader of its own. It shares no line with the code under test.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.reference.adapters import Adapted, Adapter
from tests.reference.resnet import flatten_row_major, modified_resnet
from tests.reference.torchvision_shim import make_torchvision_importable

make_torchvision_importable()
from transformers import GPTJConfig, GPTJForCausalLM  # noqa: E402

State = dict[str, torch.Tensor]

# Entries of the published file that hold nothing to learn.
RECOMPUTED = ("attention.bias", "attention.masked_bias", "attention.scale_attn")
RECOMPUTED += ("attention.sin", "attention.cos", "num_batches_tracked")


def read_state(path: Path | str) -> State:
    """The tensors of a published checkpoint under their own names, aliases and buffers dropped."""
    container = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = container.get("module", container)
    wanted = ("lm.", "image_prefix.")
    return {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(wanted) and not name.endswith(RECOMPUTED)
    }


def rotary_table(positions: int, rotary_dim: int, base: float = 10000.0) -> torch.Tensor:
    """[sin | cos] in float64, [positions, rotary_dim]: the layout transformers' GPT-J keeps."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * base**-exponents
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _scores_in_own_dtype(self: Any, query, key, value, attention_mask=None):
    """transformers computes scores in float32 at any dtype, which would cap float64's accuracy."""
    scores = query @ key.transpose(-1, -2) / self.scale_attn
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return weights @ value, weights


class ReferenceMagma(nn.Module):
    """The whole model with randomly initialised weights; see `from_checkpoint`."""

    def __init__(self, config: Any):
        super().__init__()
        visual, text = config.visual, config.transformer
        if text.attention.rotary_positional_embeddings_base != 10000:
            raise ValueError("transformers' GPT-J has the rotary base 10000 built in")
        heads, h = text.attention.heads, text.hidden_size
        self.real_vocab_size = text.embedding.real_vocab_size
        self.enc = modified_resnet(visual.layers, visual.width, visual.image_resolution)
        self.proj = nn.Linear(32 * visual.width, h)
        self.ln = nn.LayerNorm(h, eps=1e-5)
        self.lm = GPTJForCausalLM(
            GPTJConfig(
                vocab_size=text.embedding.vocab_size,
                n_positions=(visual.image_resolution // 32) ** 2 + text.sequence_length,
                n_embd=h,
                n_layer=text.layers,
                n_head=heads,
                rotary_dim=text.attention.rotary_dim or h // heads,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="eager",
            )
        )
        for name, adapter in (("mlp", text.ff_adapter), ("attn", text.attention_adapter)):
            for block in self.lm.transformer.h if adapter.mode is not None else ():
                network = Adapter(h, adapter.downsample_factor, adapter.layer_norm)
                setattr(block, name, Adapted(getattr(block, name), network, adapter.mode))
        self.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, config: Any, dtype: torch.dtype = torch.float32
    ) -> ReferenceMagma:
        """The model of a config with the weights of one checkpoint file, computing in `dtype`.

        Args:
            path: a file in the published format.
            config: a MagmaConfig.
            dtype: float32, or float64 for judging float32.

        Raises:
            RuntimeError: the file lacks a weight, or holds one that the model has no place for.
        """
        model = cls(config).to(dtype)
        names = published_names(config)
        state = read_state(path)
        unknown = sorted(state.keys() - names.values())
        if unknown:
            raise RuntimeError(f"{path}: no place for {unknown}")
        counters = {k: v for k, v in model.state_dict().items() if k.endswith("batches_tracked")}
        own = {name: state[published].to(dtype) for name, published in names.items()}
        wte = own["lm.transformer.wte.weight"]
        padding = model.lm.config.vocab_size - len(wte)
        own["lm.transformer.wte.weight"] = nn.functional.pad(wte, (0, 0, 0, padding))
        model.load_state_dict({**own, **counters}, strict=True)
        if dtype == torch.float64:
            model._use_float64_attention()
        return model

    def _use_float64_attention(self) -> None:
        for block in self.lm.transformer.h:
            attention = block.attn
            attention.embed_positions = rotary_table(attention.max_positions, attention.rotary_dim)
            attention._attn = types.MethodType(_scores_in_own_dtype, attention)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.proj.weight.dtype

    @torch.no_grad()
    def embed_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image prefix: [b, 3, H, W] -> [b, i, h]."""
        features = flatten_row_major(self.enc(pixels.to(self.dtype)))
        return self.ln(self.proj(features))

    @torch.no_grad()
    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Word embedding: [b, t] -> [b, t, h]."""
        return self.lm.transformer.wte(ids)

    @torch.no_grad()
    def block(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """One decoder block, causal from position 0: [b, s, h] -> [b, s, h]."""
        mask, positions = self._mask_and_positions(x)
        block = self.lm.transformer.h[layer]
        return block(x, attention_mask=mask, position_ids=positions)[0]

    @torch.no_grad()
    def attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Causal self-attention of one block, without its layer norm: [b, s, h] -> [b, s, h]."""
        mask, positions = self._mask_and_positions(x)
        attention = self.lm.transformer.h[layer].attn
        return attention(x, attention_mask=mask, position_ids=positions)[0]

    @torch.no_grad()
    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Final layer norm and head: [b, s, h] -> [b, s, v]."""
        return self.lm.lm_head(self.lm.transformer.ln_f(x))

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits at every position, image first.

        Args:
            pixels: [b, 3, H, W], preprocessed.
            ids: [b, t].

        Returns:
            [b, i + t, v].
        """
        x = torch.cat((self.embed_image(pixels), self.embed_text(ids)), dim=1)
        return self.lm(inputs_embeds=x, use_cache=False).logits

    @torch.no_grad()
    def greedy(self, pixels: torch.Tensor, ids: torch.Tensor, n: int) -> torch.Tensor:
        """The n most probable next ids, one by one, everything recomputed: [b, t] -> [b, n]."""
        start = ids.shape[1]
        for _ in range(n):
            chosen = self.logits(pixels, ids)[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat((ids, chosen), dim=1)
        return ids[:, start:]

    def _mask_and_positions(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = x.shape[1]
        hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
        mask = torch.zeros(s, s, dtype=x.dtype).masked_fill(hidden, -torch.inf)
        return mask[None, None], torch.arange(s)[None]


def published_names(config: Any) -> dict[str, str]:
    """Name in this model -> name in the published checkpoint, for every learned tensor."""
    table = {"lm.transformer.wte.weight": "lm.transformer.wte.weight"}
    for stem in ("lm.transformer.ln_f", "lm.lm_head"):
        table |= _both(stem, stem)
    for stem in ("proj", "ln"):
        table |= _both(stem, f"image_prefix.{stem}")
    for layer in range(config.transformer.layers):
        table |= _block_names(config, f"lm.transformer.h.{layer}")
    return table | _encoder_names(config)


def _both(own: str, published: str) -> dict[str, str]:
    return {f"{own}.{part}": f"{published}.{part}" for part in ("weight", "bias")}


def _block_names(config: Any, block: str) -> dict[str, str]:
    lm = config.transformer
    table = _both(f"{block}.ln_1", f"{block}.ln_1")
    own, mlp = _PUBLISHED[lm.ff_adapter.mode]
    for name, published in (("fc_in", "c_fc"), ("fc_out", "c_proj")):
        table |= _both(f"{block}.mlp{own}.{name}", f"{block}.mlp{mlp}.{published}")
    own, attention = _PUBLISHED[lm.attention_adapter.mode]
    attention = ".attn_block" if attention == ".0" else attention
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        published = f"{block}.attn{attention}.attention.{name}.weight"
        table[f"{block}.attn{own}.{name}.weight"] = published
    for place, adapter in (("mlp", lm.ff_adapter), ("attn", lm.attention_adapter)):
        behind = ".1" if (place, adapter.mode) == ("mlp", "normal") else ""
        if adapter.mode == "scaled_parallel":
            table[f"{block}.{place}.scale"] = f"{block}.{place}.adapter_scale"
        if adapter.mode is not None:
            parts = {"down": 1, "up": 3, "norm": 0} if adapter.layer_norm else {"down": 0, "up": 2}
            for name, index in parts.items():
                published = f"{block}.{place}{behind}.adapter.{index}"
                table |= _both(f"{block}.{place}.adapter.{name}", published)
    return table


# Where a part lies below its place: here, and in the published file's MLP.
_PUBLISHED = {
    None: ("", ""),
    "normal": (".part", ".0"),
    "parallel": (".part", ".module"),
    "scaled_parallel": (".part", ".module"),
}


def _encoder_names(config: Any) -> dict[str, str]:
    norm = ("weight", "bias", "running_mean", "running_var")
    own = [f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn")]
    for stage, blocks in enumerate(config.visual.layers, start=1):
        for j in range(blocks):
            block = f"layer{stage}.{j}"
            own += [f"{block}.{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn")]
        own += [f"layer{stage}.0.downsample.{i}" for i in (0, 1)]
    table = {}
    for stem in own:
        is_norm = ".bn" in f".{stem}" or stem.endswith("downsample.1")
        for part in norm if is_norm else ("weight",):
            table[f"enc.{stem}.{part}"] = f"image_prefix.enc.{stem}.{part}"
    return table
