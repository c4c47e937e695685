"""open_clip's ModifiedResNet, loaded without the rest of open_clip.

Importing the package `open_clip` pulls in torchvision, timm and several tokenizers, of which a
plain CPU machine may have none: torchvision's wheels are built for CUDA, and beside a CPU torch
they fail at import (``operator torchvision::nms does not exist``). The file with the network needs
torch and one class of torchvision, used only to freeze batch norms, which never happens here. So
that file is imported by itself, with a stand-in for that class; nothing of it stays behind in
`sys.modules`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

import torch
from torch import nn


class _NeverFrozen(nn.BatchNorm2d):
    """Stands for torchvision's FrozenBatchNorm2d, which only `ModifiedResNet.lock` asks for."""


def _stand_ins() -> dict[str, ModuleType]:
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the reference model needs open_clip_torch: pip install --no-deps open_clip_torch"
        )
    package = ModuleType("open_clip")
    package.__path__ = list(found.submodule_search_locations)
    names = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    modules = {name: ModuleType(name) for name in names}
    modules["torchvision"].__path__ = []
    modules["torchvision.ops"].__path__ = []
    modules["torchvision.ops.misc"].FrozenBatchNorm2d = _NeverFrozen
    return {"open_clip": package, **modules}


def _loaded() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("open_clip", "torchvision")]


@functools.cache
def modified_resnet_class() -> type[nn.Module]:
    """open_clip's ModifiedResNet.

    Raises:
        ModuleNotFoundError: open_clip_torch is not installed; says how to install it.
    """
    kept = {name: sys.modules.pop(name) for name in _loaded()}
    try:
        sys.modules.update(_stand_ins())
        return importlib.import_module("open_clip.modified_resnet").ModifiedResNet
    finally:
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(kept)


def modified_resnet(layers: tuple[int, ...], width: int, image_resolution: int) -> nn.Module:
    """The encoder without its attention pool: [b, 3, H, W] -> [b, 32·width, H/32, W/32]."""
    embed_dim = 32 * width
    network = modified_resnet_class()(
        layers=list(layers),
        output_dim=embed_dim,
        heads=max(1, embed_dim // 64),
        image_size=image_resolution,
        width=width,
    )
    network.attnpool = nn.Identity()
    return network.eval()


def attention_pool(channels: int, heads: int, out_features: int, side: int) -> nn.Module:
    """open_clip's attention pool: [b, c, side, side] -> [b, out_features]; c a multiple of 64."""
    network = modified_resnet_class()(
        layers=[1, 1, 1, 1],
        output_dim=out_features,
        heads=heads,
        image_size=32 * side,
        width=channels // 32,
    )
    return network.attnpool.eval().requires_grad_(False)


def flatten_row_major(features: torch.Tensor) -> torch.Tensor:
    """[b, c, y, x] -> [b, y·x, c], token index = row · columns + column."""
    b, c, y, x = features.shape
    return features.permute(0, 2, 3, 1).reshape(b, y * x, c)
