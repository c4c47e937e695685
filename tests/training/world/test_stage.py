from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.optimiser import BETAS
from training.world.stage import adamw, resume, save, set_rates


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def test_only_matrices_and_kernels_decay():
    model = layers()
    optimiser = adamw(model.parameters(), 1e-2, 0.3)
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {name for name, value in by_name.items() if value == 0.3} == {"0.weight", "3.weight"}
    assert {by_name[name] for name in ("0.bias", "1.weight", "1.bias", "3.bias")} == {0.0}
    assert all(group["betas"] == BETAS for group in optimiser.param_groups)


def test_rates_rise_in_a_line_and_fall_in_a_cosine_from_each_groups_own_peak():
    one, other = adamw(layers().parameters(), 4e-3, 0.1), adamw(layers().parameters(), 1e-2, 0.1)
    found = []
    for step in range(100):
        set_rates([one, other], step, 100, 10, floor=0.05)
        found.append(
            [group["lr"] for optimiser in (one, other) for group in optimiser.param_groups]
        )
    for step, rates in enumerate(found):
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * step / 100)) / 2
        share = min((step + 1) / 10, 1.0) * cosine
        assert rates == pytest.approx([4e-3 * share] * 2 + [1e-2 * share] * 2)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            set_rates([optimiser], step, 6, 2, floor=0.1)
            pixels = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            model(pixels).square().sum().backward()
            optimiser.step()

    torch.manual_seed(0)
    whole = layers()
    stopped = layers()
    stopped.load_state_dict(whole.state_dict())
    train(whole, adamw(whole.parameters(), 1e-2, 0.1), range(6))
    optimiser = adamw(stopped.parameters(), 1e-2, 0.1)
    train(stopped, optimiser, range(3))
    save(tmp_path / "stage.pt", stopped, [optimiser], 3)
    rest = layers()
    optimiser = adamw(rest.parameters(), 1e-2, 0.1)
    start = resume(tmp_path / "stage.pt", rest, [optimiser])
    train(rest, optimiser, range(start, 6))
    assert start == 3
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))


def test_without_a_checkpoint_nothing_is_done_yet(tmp_path):
    assert resume(tmp_path / "none.pt", layers(), []) == 0
