"""The image encoder's parts against open_clip's, weights through the real mapping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelling.clip_resnet.attention_pool import AttentionPool2D
from modelling.clip_resnet.batch_norm import BatchNorm2D
from modelling.clip_resnet.bottleneck import Bottleneck
from modelling.clip_resnet.resnet import ModifiedResNet
from modelling.clip_resnet.stem import Stem
from tests.modelling.one_module import equal_on_all, on_all, run_module
from tests.reference.resnet import attention_pool
from tests.small_configs import BATCHES, PRECISIONS, small_config
from tests.tolerances import BY_PRECISION, FLOAT16, assert_close, relative_error

pytestmark = [
    pytest.mark.parametrize("batch", BATCHES),
    pytest.mark.parametrize("precision", PRECISIONS),
]

ENCODER = "image_prefix.enc."


def features(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random maps that vary slowly as well as from cell to cell, so that no pool levels them."""
    b, c, _, _ = shape
    return (rng.normal(size=(b, c, 1, 1)) + rng.normal(size=shape)).astype(np.float32)


def compare(reference, make, weights, x: np.ndarray, precision: str) -> None:
    with torch.no_grad():
        expected = reference(torch.from_numpy(x)).numpy()
    ours = run_module(make, [on_all(x.astype(precision), 1)], weights)
    assert ours.dtype == precision
    assert_close(equal_on_all(ours), expected, BY_PRECISION[precision])


def test_batch_norm(pair, rng, batch, precision):
    tensors, reference = pair()
    weights = BatchNorm2D.mapping(8, np.dtype(precision), tensors, f"{ENCODER}bn3.")
    x = features(rng, batch, 8, 5, 7)
    compare(reference.enc.bn3, BatchNorm2D, weights, x, precision)


def test_batch_norm_uses_its_statistics(pair, rng, batch, precision):
    """Statistics near 0 and 1 could be left out unnoticed: these are far from them."""
    names = {"weight": 2.0, "bias": -1.0, "running_mean": 3.0, "running_var": 9.0}
    tensors = {k: (v + rng.uniform(0, 1, 6)).astype(np.float32) for k, v in names.items()}
    norm = torch.nn.BatchNorm2d(6).eval()
    norm.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    weights = BatchNorm2D.mapping(6, np.dtype(precision), tensors, "")
    compare(norm, BatchNorm2D, weights, features(rng, batch, 6, 4, 4), precision)


@pytest.mark.parametrize("size", [(48, 48), (37, 50)])
def test_stem(pair, rng, batch, precision, size):
    tensors, reference = pair()
    config = small_config(precision=precision, batch=batch).visual
    weights = Stem.mapping(config, tensors, ENCODER)
    x = features(rng, batch, 3, *size)
    compare(reference.enc.stem, lambda: Stem(config), weights, x, precision)


@pytest.mark.parametrize(
    ("block", "in_channels", "planes", "stride"),
    [
        ("layer1.0", 8, 8, 1),  # shortcut convolution without pool
        ("layer2.0", 32, 16, 2),  # shortcut convolution behind a pool
        ("layer2.1", 64, 16, 1),  # plain shortcut
    ],
)
def test_bottleneck(pair, rng, batch, precision, block, in_channels, planes, stride):
    tensors, reference = pair()
    weights = Bottleneck.mapping(
        in_channels, planes, np.dtype(precision), tensors, f"{ENCODER}{block}.", stride=stride
    )
    assert ("downsample.conv.weight" in weights) == block.endswith(".0")
    x = features(rng, batch, in_channels, 7, 10)
    module = reference.enc.get_submodule(block)
    compare(module, lambda: Bottleneck(in_channels, planes, stride), weights, x, precision)


def test_bottleneck_depends_on_its_main_path(pair, rng, batch, precision):
    """open_clip's fresh blocks have a main path of zeros, which would hide any fault in it."""
    module = pair().reference.enc.layer2[1]
    x = torch.from_numpy(features(rng, batch, 64, 7, 10))
    with torch.no_grad():
        whole, shortcut = module(x), torch.relu(x)
    assert relative_error(whole.numpy(), shortcut.numpy()) > 10 * FLOAT16


def test_attention_pool(rng, batch, precision):
    channels, heads, out_features, side = 128, 2, 24, 3
    reference = attention_pool(channels, heads, out_features, side)
    state = {}
    for name, parameter in reference.named_parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        state[name] = rng.normal(scale=spread, size=tuple(parameter.shape)).astype(np.float32)
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    weights = AttentionPool2D.mapping(
        channels, out_features, side * side, np.dtype(precision), state, ""
    )
    x = features(rng, batch, channels, side, side)

    def make():
        return AttentionPool2D(channels, heads, out_features)

    compare(reference, make, weights, x, precision)


@pytest.mark.parametrize("image_resolution", [48, 96])
def test_resnet(pair, rng, batch, precision, image_resolution):
    tensors, reference = pair(image_resolution=image_resolution)
    config = small_config(
        precision=precision, batch=batch, image_resolution=image_resolution
    ).visual
    weights = ModifiedResNet.mapping(config, tensors, ENCODER)
    x = features(rng, batch, 3, image_resolution, image_resolution)
    compare(reference.enc, lambda: ModifiedResNet(config), weights, x, precision)
