"""What is trained, in which groups, and at which learning rate."""

from __future__ import annotations

import math

import pytest

from tests.small_configs import small_config
from training.config import AdapterOptions, AdapterPlaces, TrainConfig
from training.model import Magma
from training.optimiser import (
    BETAS,
    freeze,
    learning_rate,
    make_optimiser,
    set_learning_rate,
)


def prepared(**values):
    places = AdapterPlaces(AdapterOptions("scaled_parallel", 4, True), AdapterOptions())
    config = TrainConfig(model=small_config(), adapter_config=places, **values)
    model = Magma(config.model, config.layout)
    freeze(model, config)
    return model, make_optimiser(model, config), config


def groups_of(model: Magma, optimiser) -> dict[str, tuple[float, float]]:
    """(peak rate, decay) by the name of each parameter in the optimiser."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["peak_lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one():
    model, optimiser, _ = prepared(image_enc_lr=1e-5, weight_decay=0.1)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(groups_of(model, optimiser)) == sorted(trained)
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(trained)
    assert all(".adapter" in name for name in trained if name.startswith("lm."))
    assert len(optimiser.param_groups) == 4
    assert all(group["betas"] == BETAS == (0.9, 0.95) for group in optimiser.param_groups)


def test_the_encoder_has_its_rate_and_only_matrices_decay():
    model, optimiser, _ = prepared(image_enc_lr=1e-5, lr=2e-3, weight_decay=0.1)
    found = groups_of(model, optimiser)
    block, encoder = "lm.transformer.h.0", "image_prefix.enc.layer1.0"
    assert found[f"{encoder}.conv1.weight"] == (1e-5, 0.1)
    assert found[f"{encoder}.bn1.weight"] == (1e-5, 0.0)
    assert found["image_prefix.proj.weight"] == (2e-3, 0.1)
    for name in (
        "image_prefix.proj.bias",
        "image_prefix.ln.weight",
        f"{block}.mlp.adapter.0.weight",  # its layer norm
        f"{block}.mlp.adapter.1.bias",
        f"{block}.mlp.adapter_scale",
    ):
        assert found[name] == (2e-3, 0.0), name
    assert found[f"{block}.mlp.adapter.1.weight"] == (2e-3, 0.1)


def test_text_training_decays_no_embeddings():
    model, optimiser, _ = prepared(freeze_lm=False, train_text_files=("-",), weight_decay=0.1)
    found = groups_of(model, optimiser)
    assert found["lm.transformer.wte.weight"][1] == 0.0
    assert found["lm.lm_head.weight"][1] == 0.1
    assert not any(name.startswith("image_prefix.") for name in found)


def test_without_decay_or_a_rate_of_the_encoder_there_is_one_group():
    _, optimiser, _ = prepared()
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize("decay", [None, 300])
def test_the_rate_rises_then_stays_or_falls(decay):
    config = TrainConfig(lr_decay_iters=decay, warmup_num_steps=100, min_lr=1e-5)
    rates = [learning_rate(step, 1e-3, config) for step in range(400)]
    assert rates[0] == 1e-5
    for k in (1, 10, 99):
        rise = math.log(k + 1) / math.log(100)
        assert rates[k] == pytest.approx(1e-5 + (1e-3 - 1e-5) * rise)
    assert rates[100] == pytest.approx(1e-3)
    if decay is None:
        assert set(rates[100:]) == {1e-3}
    else:
        assert rates[200] == pytest.approx((1e-3 + 1e-5) / 2)
        assert rates[300:] == pytest.approx([1e-5] * 100)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_rate_is_the_peak(warmup):
    assert learning_rate(0, 1e-3, TrainConfig(warmup_num_steps=warmup)) == 1e-3


def test_each_group_follows_its_own_peak():
    _, optimiser, config = prepared(image_enc_lr=1e-5, lr=2e-3, warmup_num_steps=0)
    set_learning_rate(optimiser, 5, config)
    assert sorted(group["lr"] for group in optimiser.param_groups) == [1e-5, 2e-3]
