"""The module tree that wrote the published checkpoint, rebuilt from torch's own modules.

It computes nothing: only names, shapes, shared storage and types of its state dict matter.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from config.config import MagmaConfig
from tests.reference.resnet import modified_resnet
from utils.checkpoint_layout import AdapterLayout, AdapterSpec

POSITIONS = 10


class Attention(nn.Module):
    """The attention's entries, in a module of the name that wraps it in the original."""

    def __init__(self, config: MagmaConfig) -> None:
        super().__init__()
        lm = config.transformer
        self.attention = nn.Module()
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self.attention, name, nn.Linear(lm.hidden_size, lm.hidden_size, bias=False))
        table = torch.zeros(POSITIONS, lm.attention.rotary_dim // 2)
        mask = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool)
        scalar = torch.zeros(())
        for name, value in (
            *(("bias", mask), ("masked_bias", scalar), ("scale_attn", scalar)),
            *(("sin", table), ("cos", table)),
        ):
            self.attention.register_buffer(name, value.clone())


class Wrapped(nn.Module):
    """A module beside its adapter, the former under ``inner_name``."""

    def __init__(self, inner_name: str, inner: nn.Module, spec: AdapterSpec, hidden: int) -> None:
        super().__init__()
        setattr(self, inner_name, inner)
        self.adapter = adapter(spec, hidden)
        if spec.kind == "scaled_parallel":
            self.adapter_scale = nn.Parameter(torch.ones(1))


class OnlyAdapter(nn.Module):
    def __init__(self, spec: AdapterSpec, hidden: int) -> None:
        super().__init__()
        self.adapter = adapter(spec, hidden)


def adapter(spec: AdapterSpec, hidden: int) -> nn.Sequential:
    norm = [nn.LayerNorm(hidden)] if spec.layer_norm else []
    return nn.Sequential(
        *norm, nn.Linear(hidden, spec.inner), nn.ReLU(), nn.Linear(spec.inner, hidden)
    )


def mlp(hidden: int) -> nn.Module:
    module = nn.Module()
    module.c_fc = nn.Linear(hidden, 4 * hidden)
    module.c_proj = nn.Linear(4 * hidden, hidden)
    return module


def block(config: MagmaConfig, layout: AdapterLayout) -> nn.Module:
    hidden = config.transformer.hidden_size
    module = nn.Module()
    module.ln_1 = nn.LayerNorm(hidden)
    module.attn = Attention(config)
    if layout.attention:
        name = "attn_block" if layout.attention.kind == "normal" else "module"
        module.attn = Wrapped(name, module.attn, layout.attention, hidden)
    module.mlp = mlp(hidden)
    if layout.mlp and layout.mlp.kind == "normal":
        module.mlp = nn.Sequential(module.mlp, OnlyAdapter(layout.mlp, hidden))
    elif layout.mlp:
        module.mlp = Wrapped("module", module.mlp, layout.mlp, hidden)
    return module


def published_module(config: MagmaConfig, layout: AdapterLayout) -> nn.Module:
    """A module tree with the names and shapes of the one that wrote the published file."""
    lm, visual = config.transformer, config.visual
    inner = nn.Module()
    inner.wte = nn.Embedding(lm.embedding.real_vocab_size, lm.hidden_size)
    inner.h = nn.ModuleList(block(config, layout) for _ in range(lm.layers))
    inner.ln_f = nn.LayerNorm(lm.hidden_size)
    model = nn.Module()
    model.lm = nn.Module()
    model.lm.transformer = inner
    model.lm.lm_head = nn.Linear(lm.hidden_size, lm.embedding.vocab_size)
    model.word_embedding = inner.wte
    model.transformer = inner.h
    model.image_prefix = nn.Module()
    model.image_prefix.enc = modified_resnet(visual.layers, visual.width, visual.image_resolution)
    model.image_prefix.proj = nn.Linear(32 * visual.width, lm.hidden_size)
    model.image_prefix.ln = nn.LayerNorm(lm.hidden_size)
    return model


def published_state(
    config: MagmaConfig,
    layout: AdapterLayout,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float16,
) -> OrderedDict[str, torch.Tensor]:
    """State dict with random numbers: aliases share storage, floats of ``dtype``, as published."""
    model = published_module(config, layout).to(dtype)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
    return model.state_dict()


def deepspeed_file(state: OrderedDict[str, torch.Tensor]) -> dict[str, object]:
    """The dict that a DeepSpeed 0.5 engine saves."""
    return {
        "module": state,
        "buffer_names": ["a.b"],
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": 3},
        "sparse_tensor_module_names": {"x", "y"},
        "skipped_steps": 1,
        "global_steps": 3,
        "global_samples": 48,
        "dp_world_size": 2,
        "mp_world_size": 1,
        "ds_config": {"fp16": {"enabled": True}, "lr": 0.1},
        "ds_version": "0.5.1",
        "param_shapes": [OrderedDict({"a": torch.Size([1, 2])})],
        "global_step": 3,
        "config": None,
    }
