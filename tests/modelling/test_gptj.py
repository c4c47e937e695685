"""The language model's parts against transformers' GPT-J with adapters, for every tp degree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from config.config import ADAPTER_MODES
from modelling.adapters import Adapter
from modelling.gptj.attention import Attention
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.embedding import Embeddings
from modelling.gptj.feed_forward import FeedForward
from modelling.gptj.lm_head import LMHead
from tests.modelling.one_module import equal_on_all, joined_columns, on_all, run_module
from tests.small_configs import BATCHES, PRECISIONS, TENSOR_PARALLEL, small_config
from tests.tolerances import BY_PRECISION, assert_close, relative_error

pytestmark = [
    pytest.mark.parametrize("batch", BATCHES),
    pytest.mark.parametrize("precision", PRECISIONS),
    pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL),
]

BLOCK = "lm.transformer.h.1."
S = 13


@pytest.fixture
def config(tensor_parallel, precision, batch):
    return small_config(tensor_parallel, precision, batch)


@pytest.fixture
def x(rng, batch):
    """[b, s, h], of the size that a block sees."""
    return rng.normal(size=(batch, S, 64)).astype(np.float32)


def run(make, weights, x: np.ndarray, config, **options) -> np.ndarray:
    """[replicas, b·s, ·] from [b, s, h]."""
    rows = x.reshape(-1, x.shape[-1]).astype(config.transformer.precision.value)
    r = config.tensor_parallel
    return run_module(make, [on_all(rows, r)], weights, r, **options)


def check(ours: np.ndarray, expected: torch.Tensor, precision: str) -> None:
    expected = expected.flatten(0, 1).numpy()
    assert ours.dtype == precision
    assert_close(ours, expected, BY_PRECISION[precision])


def test_embedding(pair, rng, config, tensor_parallel, precision, batch):
    tensors, reference = pair()
    lm = config.transformer
    ids = rng.permutation(lm.embedding.real_vocab_size)[: 50 * batch].reshape(batch, 50)
    ids[0, :2] = 0, lm.embedding.real_vocab_size - 1
    weights = Embeddings.mapping(lm, tensors, "lm.transformer.")
    offsets = lm.embedding_rows_per_shard * np.arange(tensor_parallel)[:, None]
    words = (ids.reshape(1, -1) - offsets).astype(np.int32)
    ours = run_module(lambda: Embeddings(lm), [words], weights, tensor_parallel)
    check(equal_on_all(ours), reference.embed_text(torch.from_numpy(ids)), precision)


@pytest.mark.parametrize("attention_serialisation", [1, 3])
def test_attention(pair, x, tensor_parallel, precision, batch, attention_serialisation):
    tensors, reference = pair()
    config = small_config(
        tensor_parallel, precision, batch, attention_serialisation=attention_serialisation
    )
    lm = config.transformer
    weights = Attention.mapping(lm, tensors, f"{BLOCK}attn.attention.")
    ours = run(lambda: Attention(lm), weights, x, config)
    check(equal_on_all(ours), reference.attention(1, torch.from_numpy(x)), precision)


def test_feed_forward(pair, x, config, tensor_parallel, precision, batch):
    tensors, reference = pair()
    lm = config.transformer
    weights = FeedForward.mapping(lm, tensors, f"{BLOCK}mlp.0.")
    ours = run(lambda: FeedForward(lm), weights, x, config)
    expected = reference.lm.transformer.h[1].mlp.part(torch.from_numpy(x))
    check(equal_on_all(ours), expected, precision)


def adapter_difference(reference, x: np.ndarray) -> torch.Tensor:
    """What the adapter of block 1 adds to its input."""
    return reference.lm.transformer.h[1].mlp.adapter(torch.from_numpy(x))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_adapter(pair, x, tensor_parallel, precision, batch, layer_norm):
    tensors, reference = pair(adapter_layer_norm=layer_norm)
    config = small_config(tensor_parallel, precision, batch, adapter_layer_norm=layer_norm)
    lm = config.transformer
    weights = Adapter.mapping(lm, lm.ff_adapter, tensors, f"{BLOCK}mlp.1.adapter")
    ours = run(lambda: Adapter(lm, lm.ff_adapter), weights, x, config)
    expected = adapter_difference(reference, x)
    # An adapter that adds next to nothing would prove nothing in the tests of whole blocks.
    assert expected.std() > 0.1
    check(equal_on_all(ours), expected, precision)


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_unreduced_parts_sum_to_the_whole(pair, x, config, tensor_parallel, precision, batch, part):
    """A caller that reduces several parts together gets each replica's share, without biases."""
    tensors, reference = pair()
    lm, block = config.transformer, reference.lm.transformer.h[1]
    make, prefix, expected = {
        "attention": (
            Attention,
            f"{BLOCK}attn.attention.",
            reference.attention(1, torch.from_numpy(x)),
        ),
        "feed_forward": (
            FeedForward,
            f"{BLOCK}mlp.0.",
            block.mlp.part(torch.from_numpy(x)) - block.mlp.part.fc_out.bias,
        ),
    }[part]
    weights = make.mapping(lm, tensors, prefix)
    ours = run(lambda: make(lm), weights, x, config, reduce=False)
    check(ours.astype(np.float32).sum(0).astype(precision), expected, precision)


@pytest.mark.parametrize(
    "architecture",
    [
        {"adapter_mode": mlp, "attention_adapter_mode": attention, "adapter_layer_norm": norm}
        for mlp in ADAPTER_MODES
        for attention in ADAPTER_MODES
        for norm in (False, True)
        if norm is False or mlp == attention is not None
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_decoder_block(pair, x, tensor_parallel, precision, batch, architecture):
    tensors, reference = pair(**architecture)
    config = small_config(tensor_parallel, precision, batch, **architecture)
    lm = config.transformer
    weights = DecoderBlock.mapping(lm, tensors, BLOCK)
    ours = run(lambda: DecoderBlock(lm), weights, x, config)
    check(equal_on_all(ours), reference.block(1, torch.from_numpy(x)), precision)


def test_lm_head(pair, x, config, tensor_parallel, precision, batch):
    tensors, reference = pair()
    lm = config.transformer
    weights = LMHead.mapping(lm, tensors, "lm.")
    ours = run(lambda: LMHead(lm), weights, x, config)
    check(joined_columns(ours), reference.head(torch.from_numpy(x)), precision)


def test_sequences_of_a_batch_do_not_see_each_other(
    pair, x, config, tensor_parallel, precision, batch
):
    tensors, _ = pair()
    lm = config.transformer
    weights = DecoderBlock.mapping(lm, tensors, BLOCK)
    other = x.copy()
    other[-1] = -other[-1]
    before = equal_on_all(run(lambda: DecoderBlock(lm), weights, x, config)).reshape(batch, S, -1)
    after = equal_on_all(run(lambda: DecoderBlock(lm), weights, other, config))
    after = after.reshape(batch, S, -1)
    if batch > 1:
        np.testing.assert_array_equal(before[:-1], after[:-1])
    assert relative_error(after[-1], before[-1]) > BY_PRECISION[precision]
