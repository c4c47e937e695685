"""Every kind of adapter at every place, against its formula written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import layer_norm

from tests.small_configs import small_config
from tests.tolerances import FLOAT32, assert_close
from training.adapters import INITIAL_SPREAD
from training.config import ADAPTER_TYPES
from training.model import Magma
from utils.checkpoint_layout import AdapterLayout, AdapterSpec, expected_tensors

KINDS = (None, *ADAPTER_TYPES)
INNER = 16


def spec(kind: str | None, norm: bool) -> AdapterSpec | None:
    return None if kind is None else AdapterSpec(kind, INNER, norm)


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data.normal_(std=spread, generator=generator)


def inner(state: dict[str, torch.Tensor], path: str, x: torch.Tensor, norm: bool) -> torch.Tensor:
    """The adapter's own network from tensors of the checkpoint's names."""
    if norm:
        x = layer_norm(x, x.shape[-1:], state[f"{path}.0.weight"], state[f"{path}.0.bias"])
    first = 1 if norm else 0
    x = torch.relu(x @ state[f"{path}.{first}.weight"].T + state[f"{path}.{first}.bias"])
    return x @ state[f"{path}.{first + 2}.weight"].T + state[f"{path}.{first + 2}.bias"]


def adapted(kind, state, path, part_output, part_input, norm):
    """The formula of each kind, as the published description gives it."""
    if kind is None:
        return part_output
    if kind == "normal":
        return part_output + inner(state, path, part_output, norm)
    scale = state[f"{path}_scale"] if kind == "scaled_parallel" else 1
    return part_output + scale * inner(state, path, part_input, norm)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("mlp", "attention"), list(itertools.product(KINDS, KINDS)))
def test_a_block_follows_the_formula(mlp, attention, norm, rng):
    layout = AdapterLayout(mlp=spec(mlp, norm), attention=spec(attention, norm))
    config = small_config(adapter_mode=None, layers=1)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
    plain, model = Magma(config, AdapterLayout()), Magma(config, layout)
    randomise(model, generator)
    parts = {
        name.replace(".attn_block", "").replace(".module", "").replace("mlp.0.", "mlp."): tensor
        for name, tensor in model.state_dict().items()
        if ".adapter" not in name
    }
    plain.load_state_dict(parts)

    x = torch.randn(2, 5, config.transformer.hidden_size, generator=generator)
    positions = torch.arange(5)[None]
    mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]
    block = plain.lm.transformer.h[0]
    n = block.ln_1(x)
    a = block.attn(n, attention_mask=mask, position_ids=positions)[0]
    state = {k.removeprefix("lm.transformer.h.0."): v for k, v in model.state_dict().items()}
    mlp_path = "mlp.1.adapter" if mlp == "normal" else "mlp.adapter"
    expected = (
        x
        + adapted(attention, state, "attn.adapter", a, n, norm)
        + adapted(mlp, state, mlp_path, block.mlp(n), n, norm)
    )
    found = model.lm.transformer.h[0](x, attention_mask=mask, position_ids=positions)[0]
    assert_close(found.detach().numpy(), expected.detach().numpy(), FLOAT32)


@pytest.mark.parametrize(("mlp", "attention"), list(itertools.product(KINDS, KINDS)))
def test_names_and_shapes_are_the_checkpoint_s(mlp, attention):
    from training.weights import published_name

    layout = AdapterLayout(mlp=spec(mlp, True), attention=spec(attention, False))
    config = small_config()
    found = {
        published_name(k): tuple(v.shape) for k, v in Magma(config, layout).state_dict().items()
    }
    expected = expected_tensors(config, layout)
    assert found == {n: e.shape for n, e in expected.items() if "recomputable" not in e.kind.value}


@pytest.mark.parametrize("kind", ADAPTER_TYPES)
def test_a_fresh_adapter_hardly_changes_anything(kind, rng):
    layout = AdapterLayout(mlp=spec(kind, False), attention=spec(kind, False))
    model = Magma(small_config(), layout)
    tensors = [t for n, t in model.state_dict().items() if ".adapter." in n]
    assert tensors
    for tensor in tensors:
        assert tensor.abs().max() <= 2 * INITIAL_SPREAD
        assert tensor.std() > INITIAL_SPREAD / 2
