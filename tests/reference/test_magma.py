"""The reference itself: restated in plain numpy float64, and picky about its checkpoint."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference.magma import ReferenceMagma, published_names, read_state, rotary_table
from tests.reference.resnet import flatten_row_major, modified_resnet_class
from tests.small_configs import small_config
from tests.tolerances import (
    REFERENCE_FLOAT32,
    REFERENCE_FLOAT64,
    ROTARY_TRANSFORMERS,
    assert_close,
    relative_error,
)

State = dict[str, np.ndarray]
EPSILON = 0.00001  # of all norms
DTYPES = {torch.float32: REFERENCE_FLOAT32, torch.float64: REFERENCE_FLOAT64}


def random_state(config, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Values under published names, drawn here: independent of the project's own writer."""
    shapes = {own: tensor.shape for own, tensor in ReferenceMagma(config).state_dict().items()}
    rows = config.transformer.embedding.real_vocab_size
    state = {}
    for own, published in published_names(config).items():
        shape = (rows, *shapes[own][1:]) if "wte" in own else tuple(shapes[own])
        values = rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]))
        if published.endswith("running_var"):
            values = rng.uniform(0.5, 2, shape)
        state[published] = torch.from_numpy(values)
    return state


@pytest.fixture
def checkpoint(tmp_path: Path, rng: np.random.Generator, request: pytest.FixtureRequest):
    config = small_config(image_resolution=96, **getattr(request, "param", {}))
    path = tmp_path / "checkpoint.pt"
    torch.save({"module": random_state(config, rng)}, path)
    return config, path


def linear(x: np.ndarray, state: State, name: str) -> np.ndarray:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def layer_norm(x: np.ndarray, state: State, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotated(x: np.ndarray, rotary_dim: int) -> np.ndarray:
    """Rotates pairs (2i, 2i+1) of the first channels of one head, [s, d], by complex numbers."""
    rates = 10000.0 ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    turns = np.exp(1j * np.arange(len(x))[:, None] * rates)
    pairs = (x[:, 0:rotary_dim:2] + 1j * x[:, 1:rotary_dim:2]) * turns
    out = x.copy()
    out[:, 0:rotary_dim:2], out[:, 1:rotary_dim:2] = pairs.real, pairs.imag
    return out


def attention(n: np.ndarray, state: State, config) -> np.ndarray:
    """One sequence, head by head, query by query: [s, h] -> [s, h]."""
    d, rotary_dim = config.head_size, config.attention.rotary_dim
    q, k, v = (linear(n, state, f"attn.attention.{x}_proj") for x in "qkv")
    heads = []
    for head in range(config.attention.heads):
        columns = slice(head * d, (head + 1) * d)
        keys = rotated(k[:, columns], rotary_dim)
        rows = []
        for position, query in enumerate(rotated(q[:, columns], rotary_dim)):
            scores = keys[: position + 1] @ query / math.sqrt(d)
            weights = np.exp(scores - scores.max())
            rows.append(weights @ v[: position + 1, columns] / weights.sum())
        heads.append(np.stack(rows))
    return linear(np.concatenate(heads, axis=-1), state, "attn.attention.out_proj")


def block(x: np.ndarray, state: State, config) -> np.ndarray:
    """A decoder block with its adapter, from the formulas: [s, h] -> [s, h]."""
    n = layer_norm(x, state, "ln_1")
    adapted = config.ff_adapter.mode is not None
    mlp = "mlp.0" if adapted else "mlp"
    f = linear(gelu(linear(n, state, f"{mlp}.c_fc")), state, f"{mlp}.c_proj")
    if adapted:
        z, first, second = f, 0, 2
        if config.ff_adapter.layer_norm:
            z, first, second = layer_norm(f, state, "mlp.1.adapter.0"), 1, 3
        inner = np.maximum(linear(z, state, f"mlp.1.adapter.{first}"), 0)
        f = f + linear(inner, state, f"mlp.1.adapter.{second}")
    return x + attention(n, state, config) + f


def numpy_state(path: Path, prefix: str) -> State:
    state = read_state(path)
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): t.double().numpy() for name, t in own.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "checkpoint", [{}, {"adapter_layer_norm": True}, {"adapter_mode": None}], indirect=True, ids=str
)
def test_a_block_is_what_the_formulas_say(checkpoint, dtype, rng):
    config, path = checkpoint
    reference = ReferenceMagma.from_checkpoint(path, config, dtype)
    x = rng.normal(size=(2, 12, config.transformer.hidden_size))
    expected = [
        block(row, numpy_state(path, "lm.transformer.h.1."), config.transformer) for row in x
    ]
    ours = reference.block(1, torch.from_numpy(x).to(dtype))
    assert_close(ours.numpy(), np.stack(expected), DTYPES[dtype])


def convolution(x: np.ndarray, kernel: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """[c, y, x] by shifted sums over the kernel's positions."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    size = kernel.shape[-1]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:])
    total = np.zeros((len(kernel), rows, columns))
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            total += np.einsum("oc,cyx->oyx", kernel[:, :, i, j], part[:, :rows, :columns])
    return total


def batch_norm(x: np.ndarray, state: State, name: str) -> np.ndarray:
    names = ("weight", "bias", "running_mean", "running_var")
    gain, shift, mean, variance = (state[f"{name}.{n}"][:, None, None] for n in names)
    return (x - mean) / np.sqrt(variance + EPSILON) * gain + shift


def pool(x: np.ndarray, n: int) -> np.ndarray:
    c, rows, columns = x.shape[0], x.shape[1] // n, x.shape[2] // n
    return x[:, : rows * n, : columns * n].reshape(c, rows, n, columns, n).mean((2, 4))


def bottleneck(x: np.ndarray, state: State, prefix: str, stride: int) -> np.ndarray:
    def step(y, i, pad):
        y = convolution(y, state[f"{prefix}conv{i}.weight"], 1, pad)
        return batch_norm(y, state, f"{prefix}bn{i}")

    y = np.maximum(step(x, 1, 0), 0)
    y = pool(np.maximum(step(y, 2, 1), 0), stride)
    y = step(y, 3, 0)
    if f"{prefix}downsample.0.weight" in state:
        x = convolution(pool(x, stride), state[f"{prefix}downsample.0.weight"], 1, 0)
        x = batch_norm(x, state, f"{prefix}downsample.1")
    return np.maximum(x + y, 0)


def encoder(x: np.ndarray, state: State, config) -> np.ndarray:
    """The whole encoder for one picture: [3, H, W] -> [32·width, H/32, W/32]."""
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = convolution(x, state[f"conv{i}.weight"], stride, 1)
        x = np.maximum(batch_norm(x, state, f"bn{i}"), 0)
    x = pool(x, 2)
    for stage, blocks in enumerate(config.layers, start=1):
        for j in range(blocks):
            stride = 2 if stage > 1 and j == 0 else 1
            x = bottleneck(x, state, f"layer{stage}.{j}.", stride)
    return x


def test_the_image_prefix_is_what_the_formulas_say(checkpoint, rng):
    config, path = checkpoint
    reference = ReferenceMagma.from_checkpoint(path, config, torch.float64)
    image = rng.normal(size=(3, 96, 96))
    features = encoder(image, numpy_state(path, "image_prefix.enc."), config.visual)
    tokens = np.stack([features[:, y, x] for y in range(3) for x in range(3)])
    state = numpy_state(path, "image_prefix.")
    expected = layer_norm(linear(tokens, state, "proj"), state, "ln")
    ours = reference.embed_image(torch.from_numpy(image)[None])
    assert_close(ours[0].numpy(), expected, REFERENCE_FLOAT64)


def test_logits_put_the_image_first_and_hide_what_follows(checkpoint, rng):
    config, path = checkpoint
    reference = ReferenceMagma.from_checkpoint(path, config)
    pixels = torch.from_numpy(rng.normal(size=(1, 3, 96, 96))).float()
    ids = torch.from_numpy(rng.integers(0, 106, (1, 12)))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 106
    before, after = reference.logits(pixels, ids), reference.logits(pixels, changed)
    first = config.image_tokens + 5
    assert before.shape == (1, 9 + 12, 116)
    assert torch.equal(before[:, :first], after[:, :first])
    assert relative_error(after[:, first:], before[:, first:]) > REFERENCE_FLOAT32


def test_float32_and_float64_agree(checkpoint, rng):
    config, path = checkpoint
    pixels = torch.from_numpy(rng.normal(size=(2, 3, 96, 96)))
    ids = torch.from_numpy(rng.integers(0, 106, (2, 12)))
    single, double = (
        ReferenceMagma.from_checkpoint(path, config, dtype).logits(pixels, ids) for dtype in DTYPES
    )
    assert single.dtype == torch.float32
    assert_close(single, double, REFERENCE_FLOAT32)


def test_greedy_appends_the_most_probable(checkpoint, rng):
    config, path = checkpoint
    reference = ReferenceMagma.from_checkpoint(path, config)
    pixels = torch.from_numpy(rng.normal(size=(2, 3, 96, 96))).float()
    ids = torch.from_numpy(rng.integers(0, 106, (2, 4)))
    chosen = reference.greedy(pixels, ids, 5)
    assert chosen.shape == (2, 5)
    logits = reference.logits(pixels, torch.cat((ids, chosen[:, :-1]), dim=1))
    assert torch.equal(logits[:, -5:].argmax(-1), chosen)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("image_prefix.ln.bias"), KeyError, "image_prefix.ln.bias"),
        (
            lambda s: s.update({"lm.transformer.h.0.ln_2.weight": torch.zeros(64)}),
            RuntimeError,
            "ln_2",
        ),
        (
            lambda s: s.update({"lm.lm_head.weight": torch.zeros(115, 64)}),
            RuntimeError,
            "size mismatch",
        ),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_a_wrong_checkpoint_is_refused(checkpoint, change, error, message):
    config, path = checkpoint
    container = torch.load(path, weights_only=True)
    change(container["module"])
    torch.save(container, path)
    with pytest.raises(error, match=message):
        ReferenceMagma.from_checkpoint(path, config)


def test_the_rotary_table_matches_that_of_transformers():
    ours = rotary_table(2048, 64)
    attention = ReferenceMagma(small_config(text_tokens=2047, layers=1)).lm.transformer.h[0].attn
    theirs = attention.embed_positions
    assert theirs.shape == (2048, 6)
    np.testing.assert_allclose(rotary_table(2048, 6), theirs, atol=ROTARY_TRANSFORMERS)
    np.testing.assert_allclose(ours[5, 0], math.sin(5))
    np.testing.assert_allclose(ours[7, 33], math.cos(7 * 10000 ** (-2 / 64)))


def test_tokens_are_row_major():
    features = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    tokens = flatten_row_major(features)
    assert tokens.shape == (1, 12, 2)
    assert tokens[0, 1 * 4 + 2].tolist() == features[0, :, 1, 2].tolist()


def test_loading_open_clips_network_leaves_no_stand_in_behind():
    assert modified_resnet_class().__module__ == "open_clip.modified_resnet"
    for name in ("open_clip", "torchvision"):
        module = sys.modules.get(name)
        assert module is None or module.__spec__ is not None
