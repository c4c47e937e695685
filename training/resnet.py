"""CLIP's image encoder: a ResNet whose downsampling is always an average pool.

The network is that of Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (2021), section 2.4, without its attention pool. Parameters carry the names that CLIP's
and open_clip's files use.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, relu

EXPANSION = 4
"""Channels that a block returns, over its planes."""


def _pool(x: torch.Tensor, stride: int) -> torch.Tensor:
    return avg_pool2d(x, stride) if stride > 1 else x


class Bottleneck(nn.Module):
    """One residual block: [b, c_in, y, x] -> [b, 4·planes, y/stride, x/stride]."""

    def __init__(self, c_in: int, planes: int, stride: int) -> None:
        """Layers of a block; the shortcut has a convolution where sizes change."""
        super().__init__()
        c_out = EXPANSION * planes
        self.conv1 = nn.Conv2d(c_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.stride = stride
        self.downsample = None
        if stride > 1 or c_in != c_out:
            layers = {"0": nn.Conv2d(c_in, c_out, 1, bias=False), "1": nn.BatchNorm2d(c_out)}
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        main = relu(self.bn1(self.conv1(x)))
        main = relu(self.bn2(self.conv2(main)))
        main = self.bn3(self.conv3(_pool(main, self.stride)))
        if self.downsample is not None:
            x = self.downsample(_pool(x, self.stride))
        return relu(main + x)


class ModifiedResNet(nn.Module):
    """The encoder without its attention pool: [b, 3, y, x] -> [b, 32·width, y/32, x/32]."""

    def __init__(self, layers: tuple[int, int, int, int], width: int) -> None:
        """A stem of three convolutions, then four layers of so many blocks."""
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        c_in = width
        for number, blocks in enumerate(layers, start=1):
            planes = width * 2 ** (number - 1)
            strides = [1 if number == 1 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(Bottleneck(c_in, planes, stride))
                c_in = EXPANSION * planes
            self.add_module(f"layer{number}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = relu(self.bn1(self.conv1(x)))
        x = relu(self.bn2(self.conv2(x)))
        x = avg_pool2d(relu(self.bn3(self.conv3(x))), 2)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return x
