"""Layers against torch, with weights that go through `torch_mapping`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.layers import Conv2D, Embedding, GroupNorm, LayerNorm, Linear
from popxl_addons.layers.embedding import MULTISLICE_MAGIC_NUMBER
from popxl_addons.layers.layer_norm_distributed import LayerNormDistributed
from popxl_addons.layers.linear_gq import LinearGQ, group_quantize_compress_numpy
from popxl_addons.ops.group_quantize_decompress import group_quantize_decompress_numpy
from popxl_addons.testing_utils import TensorInput, run_module

# Sums of a few dozen products of numbers near 1 in float32, in another order.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def randomised(layer: torch.nn.Module, rng: np.random.Generator) -> torch.nn.Module:
    for parameter in layer.parameters():
        parameter.data = torch.tensor(rng.normal(size=parameter.shape), dtype=torch.float32)
    return layer.double()


CASES: list[tuple[str, Callable[[], addons.Module], Callable[[], torch.nn.Module], tuple]] = [
    ("linear", lambda: Linear(5), lambda: torch.nn.Linear(3, 5), (4, 3)),
    ("linear 3-D", lambda: Linear(5), lambda: torch.nn.Linear(3, 5), (2, 4, 3)),
    (
        "linear without bias",
        lambda: Linear(5, bias=False),
        lambda: torch.nn.Linear(3, 5, bias=False),
        (4, 3),
    ),
    ("layer norm", LayerNorm, lambda: torch.nn.LayerNorm(8), (4, 8)),
    ("group norm", lambda: GroupNorm(2), lambda: torch.nn.GroupNorm(2, 8), (3, 8, 4, 2)),
    (
        "conv",
        lambda: Conv2D(6, 3, paddings=(1, 1, 1, 1)),
        lambda: torch.nn.Conv2d(4, 6, 3, padding=1),
        (2, 4, 7, 5),
    ),
    (
        "conv with stride and groups",
        lambda: Conv2D(6, (3, 2), strides=(2, 1), groups=2, bias=False),
        lambda: torch.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2, bias=False),
        (2, 4, 7, 5),
    ),
    (
        "conv with dilation",
        lambda: Conv2D(6, 3, dilations=(2, 2)),
        lambda: torch.nn.Conv2d(4, 6, 3, dilation=2),
        (1, 4, 9, 8),
    ),
    (
        "conv padded by name",
        lambda: Conv2D(6, 3, paddings="same_upper"),
        lambda: torch.nn.Conv2d(4, 6, 3, padding="same"),
        (1, 4, 5, 8),
    ),
]


@pytest.mark.parametrize(("name", "ours", "theirs", "shape"), CASES, ids=[c[0] for c in CASES])
def test_layer_agrees_with_torch(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], torch.nn.Module],
    shape: tuple,
    rng: np.random.Generator,
):
    reference = randomised(theirs(), rng)
    x = rng.normal(size=shape).astype("float32")
    module = ours()
    (y,) = run_module(
        module, TensorInput(x), weights=lambda variables: module.torch_mapping(variables, reference)
    )
    with torch.no_grad():
        expected = reference(torch.tensor(x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(y, expected, **FLOAT32)


def test_variables(ir: popxl.Ir):
    x = popxl.TensorSpec((4, 3), popxl.float16)
    facts, _ = Linear(5).create_graph(x)
    assert {k: (f.shape, f.dtype) for k, f in facts.to_dict().items()} == {
        "weight": ((3, 5), popxl.float16),
        "bias": ((5,), popxl.float16),
    }
    facts, _ = LayerNorm().create_graph(x)
    np.testing.assert_array_equal(facts.weight.next_data(), np.ones(3))
    np.testing.assert_array_equal(facts.bias.next_data(), np.zeros(3))
    image = popxl.TensorSpec((1, 4, 8, 8), popxl.float16)
    facts, _ = Conv2D(6, (3, 2), groups=2).create_graph(image)
    assert (facts.weight.shape, facts.bias.shape) == ((6, 2, 3, 2), (1, 6, 1, 1))


def test_weights_differ_by_group(ir4: popxl.Ir):
    group = ir4.replica_grouping(group_size=1)
    facts, _ = Linear(5, replica_grouping=group).create_graph(
        popxl.TensorSpec((4, 3), popxl.float32)
    )
    weight = facts.weight.next_data()
    assert weight.shape == (4, 3, 5)
    assert np.unique(weight).size == weight.size
    assert facts.init(empty=True).weight.shape_on_host == (4, 3, 5)


def test_layer_norm_wants_two_axes(ir: popxl.Ir):
    with pytest.raises(ValueError, match=r"\(rows, features\), got shape \(2, 3, 4\)"):
        LayerNorm().create_graph(popxl.TensorSpec((2, 3, 4), popxl.float32))


def test_conv_keeps_its_tensors_and_can_be_built_again(ir: popxl.Ir):
    conv = Conv2D(6, 3)
    x = popxl.TensorSpec((1, 4, 8, 8), popxl.float32)
    for _ in range(2):
        facts, graph = conv.create_graph(x)
        assert sorted(facts.keys()) == ["bias", "weight"]
        assert conv.bias == graph.args.bias
    with pytest.raises(AssertionError, match="batch, channels"):
        conv.create_graph(popxl.TensorSpec((4, 8, 8), popxl.float32))


@pytest.mark.parametrize(
    ("vocab", "shards", "size"), [(50257, 1, 50272), (50400, 4, 12608), (16, 1, 16), (1, 4, 16)]
)
def test_vocabulary_shards(vocab: int, shards: int, size: int):
    assert Embedding.get_vocab_shard_size(vocab, shards) == size
    np.testing.assert_array_equal(
        Embedding.get_offsets(vocab, shards), [i * size for i in range(shards)]
    )
    assert size % MULTISLICE_MAGIC_NUMBER == 0


def test_embedding(rng: np.random.Generator):
    words = rng.integers(0, 30, size=(2, 5), dtype="int32")
    table = rng.normal(size=(32, 3)).astype("float32")
    (y,) = run_module(
        Embedding(popxl.float32, 30, 3), TensorInput(words), weights=lambda v: {v.weight: table}
    )
    np.testing.assert_array_equal(y, table[words])


def test_sharded_embedding_sums_to_the_whole(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    each = ir4.replica_grouping(group_size=1)
    module = Embedding(popxl.float32, 60, 3, replica_grouping=each)
    assert (module.n_shards, module.vocab_shard_size) == (4, 16)
    words = rng.integers(0, 60, size=7, dtype="int32")
    stream = popxl.h2d_stream((7,), popxl.int32)
    facts, graph = module.create_graph(popxl.TensorSpec((7,), popxl.int32))
    variables = facts.init(empty=True)
    (rows,) = graph.bind(variables).call(ops.host_load(stream))
    total = ops.collectives.replicated_all_reduce(rows)
    table = np.pad(rng.normal(size=(60, 3)).astype("float32"), ((0, 4), (0, 0)))
    shifted = np.stack([words - offset for offset in module.offsets]).astype("int32")
    y, part = run(
        [total, rows], {stream: shifted}, {variables.weight: addons.shard(table, 4, axis=0)}
    )
    np.testing.assert_array_equal(y, np.broadcast_to(table[words], (4, 7, 3)))
    outside = words // 16 != np.arange(4)[:, None]
    assert (part[outside] == 0).all()


def test_group_quantised_mapping(ir: popxl.Ir, rng: np.random.Generator):
    layer = randomised(torch.nn.Linear(8, 16), rng)
    packed, scale, bias = group_quantize_compress_numpy(layer.weight.detach().numpy().T, 4, -1)
    spec = {
        "weight_compressed": packed,
        "weight_decompression_scale": scale,
        "weight_decompression_bias": bias,
        "bias": layer.bias.detach().numpy().astype("float16"),
    }
    variables = addons.NamedTensors.from_dict({k: popxl.variable(v) for k, v in spec.items()})
    weights = LinearGQ.torch_mapping(variables, layer, popxl.float16, group_size=4)
    for key, value in spec.items():
        np.testing.assert_array_equal(weights[variables[key]], value)


@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_group_quantised_linear(dim: int, rng: np.random.Generator):
    layer = randomised(torch.nn.Linear(16, 8), rng)
    x = rng.normal(size=(3, 16)).astype("float16")
    (y,) = run_module(
        LinearGQ(8, group_size=8, dim=dim),
        TensorInput(x),
        weights=lambda v: LinearGQ.torch_mapping(v, layer, popxl.float16, 8, dim),
    )
    parts = group_quantize_compress_numpy(layer.weight.detach().numpy().T, 8, dim)
    weight = group_quantize_decompress_numpy(*parts, dim)
    assert weight.shape == (16, 8)
    expected = x.astype("float64") @ weight + layer.bias.detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-2, atol=2e-2)


def test_distributed_layer_norm(ir4: popxl.Ir, run: Any, rng: np.random.Generator):
    pair = ir4.replica_grouping(group_size=2)
    stream = popxl.h2d_stream((3, 4), popxl.float32)
    facts, graph = LayerNormDistributed(pair).create_graph(popxl.TensorSpec((3, 4), popxl.float32))
    variables = facts.init()
    assert variables.weight.shape_on_host == (2, 4)
    (y,) = graph.bind(variables).call(ops.host_load(stream))
    x = rng.normal(size=(2, 3, 8)).astype("float32")
    weights = rng.normal(size=(2, 8)).astype("float32")
    cut = {
        v: addons.shard(w, 2, 0)
        for v, w in zip((variables.weight, variables.bias), weights, strict=True)
    }
    (result,) = run([y], {stream: np.concatenate([addons.shard(a, 2, 1) for a in x])}, cut)
    tensors = [torch.tensor(a, dtype=torch.float64) for a in (x, *weights)]
    expected = torch.nn.functional.layer_norm(tensors[0], (8,), *tensors[1:]).numpy()
    joined = np.stack([addons.unshard(r, 1) for r in (result[:2], result[2:])])
    np.testing.assert_allclose(joined, expected, **FLOAT32)


def test_layer_norm_distributed_needs_a_grouping(ir: popxl.Ir):
    with pytest.raises(ValueError, match="replica_grouping is needed"):
        LayerNormDistributed().create_graph(popxl.TensorSpec((4, 8), popxl.float32))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
