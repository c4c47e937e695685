"""The image encoder against open_clip's, with every weight and statistic at random."""

from __future__ import annotations

import pytest
import torch

from tests.reference.resnet import modified_resnet
from tests.tolerances import FLOAT32, assert_close
from training.resnet import ModifiedResNet


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("side", [64, 50])
def test_equals_open_clip(rng, training, side):
    layers, width = (1, 2, 1, 2), 8
    ours, theirs = ModifiedResNet(layers, width), modified_resnet(layers, width, 64)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.2, generator=generator)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, side, side, generator=generator)
    ours.train(training)
    theirs.train(training)
    assert_close(ours(pixels).detach().numpy(), theirs(pixels).detach().numpy(), FLOAT32)
