"""Language models as applications train and run them, against PyTorch and transformers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
import torch
from popxl import ops
from popxl_addons.array_munging import shard
from popxl_addons.layers import Embedding, LayerNorm, Linear
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.grad_reduce_square_add import grad_reduce_square_add
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)
from popxl_addons.optimizers.adam import AdamOptimizerStep
from popxl_addons.patterns import apply_pre_alias_patterns
from torch.nn import functional as F
from transformers import BloomConfig, LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import BloomBlock, build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5LayerSelfAttention

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
FAST_TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}
TP, DP, VOCAB, HIDDEN, TOKENS = 2, 2, 40, 8, 6
SHARD = Embedding.get_vocab_shard_size(VOCAB, TP)
SCALE, CLIP, LR = 64.0, 0.05, 0.01


class Head(addons.Module):
    """Embedding, feed-forward layer and loss, each over shards; the words are a tied weight."""

    def __init__(self, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.tp = tp
        shards = tp.transpose()
        self.embed = Embedding(popxl.float32, VOCAB, HIDDEN, replica_grouping=shards)
        self.norm = LayerNorm()
        self.up = Linear(4 * HIDDEN // TP, replica_grouping=shards)
        self.down = Linear(HIDDEN, bias=False, replica_grouping=shards)

    def build(self, words: popxl.Tensor, labels: popxl.Tensor) -> popxl.Tensor:
        x = replicated_all_reduce_identical_grad_inputs(self.embed(words), group=self.tp)
        h = replicated_all_reduce_identical_inputs(self.norm(x), group=self.tp)
        h = self.down(ops.gelu(self.up(h)))
        x = x + replicated_all_reduce_identical_grad_inputs(h, group=self.tp)
        x = replicated_all_reduce_identical_inputs(x, group=self.tp)
        logits = x @ ops.transpose(self.embed.weight)
        return cross_entropy_sharded_loss(logits, labels, replica_grouping=self.tp) * SCALE


def torch_loss(p: dict[str, torch.Tensor], words: torch.Tensor, labels: torch.Tensor):
    x = p["embed.weight"][words]
    h = F.layer_norm(x, (HIDDEN,), p["norm.weight"], p["norm.bias"])
    h = F.gelu(h @ p["up.weight"] + p["up.bias"], approximate="tanh") @ p["down.weight"]
    return F.cross_entropy((x + h) @ p["embed.weight"].T, labels)


AXES = {"embed.weight": 0, "up.weight": 1, "up.bias": 0, "down.weight": 0}


def train_step(
    ir: popxl.Ir, words: popxl.Tensor, labels: popxl.Tensor, micro: int
) -> tuple[addons.NamedTensors, popxl.Tensor]:
    tp = ir.replica_grouping(stride=1, group_size=TP)
    facts, graph = Head(tp).create_graph(words.spec, labels.spec)
    state = facts.init()
    groups = facts.replica_groupings
    accumulated, grad = addons.autodiff_with_accumulation(
        graph, graph.args.tensors, replica_groupings=groups
    )
    popxl.transforms.decompose_sum(grad.graph)
    grad = addons.recompute_graph(grad)
    accum, bound = accumulated.init_zero(), graph.bind(state)
    connect = grad.grad_graph_info.inputs_dict
    grad = grad.bind(addons.NamedTensors.from_dict({**state.to_dict(), **accum.to_dict()}))
    for _ in range(micro):
        call = bound.call_with_info(words, labels)
        grad.call(popxl.constant(1.0), args=connect(call))
    loss, counts = call.outputs[0], []
    named = accum.accum.named_tensors
    for name, t in named.items():
        ops.collectives.replicated_all_reduce_(t, "mean", group=tp.transpose())
        square = grad_reduce_square_add(t, SCALE)
        shared = groups.to_dict()[name].num_groups == 1
        counts.append(square / TP if shared else square)
    total = counts[0]
    for count in counts[1:]:
        total = total + count
    norm = ops.sqrt(ops.collectives.replicated_all_reduce(total, group=tp))
    optimiser = AdamOptimizerStep()
    for name, var in state.named_tensors.items():
        group = groups.to_dict()[name]
        made, step = optimiser.create_graph(
            var, var.spec, group, lr=LR, loss_scaling=SCALE, global_norm=norm.spec,
            global_norm_max=CLIP, first_order_dtype=popxl.float32,
        )  # fmt: skip
        step.bind(made.init()).call(var, named[name], norm)
    return state, loss


def test_a_sharded_model_trains_as_a_whole_one(rng: np.random.Generator) -> None:
    """Tensor and data parallel: loss scaling, clipping by the global norm, AdamW, sums decomposed,
    activations computed again."""
    arrays = {
        "embed.weight": rng.normal(size=(TP * SHARD, HIDDEN)) * 0.3,
        "norm.weight": rng.normal(size=HIDDEN) + 1,
        "norm.bias": rng.normal(size=HIDDEN),
        "up.weight": rng.normal(size=(HIDDEN, 4 * HIDDEN)) * 0.3,
        "up.bias": rng.normal(size=4 * HIDDEN),
        "down.weight": rng.normal(size=(4 * HIDDEN, HIDDEN)) * 0.3,
    }
    arrays["embed.weight"][VOCAB:] = -1e3  # words that there are not
    arrays = {name: a.astype("f4") for name, a in arrays.items()}
    ir = popxl.Ir(replication=TP * DP)
    with ir.main_graph, popxl.in_sequence():
        streams = [popxl.h2d_stream((TOKENS,), popxl.int32) for _ in range(2)]
        words, labels = (ops.host_load(stream) for stream in streams)
        state, loss = train_step(ir, words, labels, micro=1)
        out = addons.host_store(loss)
    apply_pre_alias_patterns(ir)
    named = state.to_dict()
    host = {
        named[name]: np.stack(shard(a, TP, AXES[name])) if name in AXES else a
        for name, a in arrays.items()
    }
    p = {n: torch.tensor(a.astype("f8"), requires_grad=True) for n, a in arrays.items()}
    adam = torch.optim.AdamW(p.values(), lr=LR, eps=1e-5, weight_decay=1e-2)
    with popxl.Session(ir, "ipu_hw") as session:
        session.write_variables_data(host)
        for _ in range(3):
            words_, labels_ = rng.integers(0, VOCAB, (2, DP, TOKENS))
            shifts = SHARD * np.arange(TP)[None, :, None]
            given = [(a[:, None] - shifts).reshape(-1, TOKENS) for a in (words_, labels_)]
            found = session.run(
                {s: a.astype("i4") for s, a in zip(streams, given, strict=True)}
            )[out]  # fmt: skip
            losses = [
                torch_loss(p, torch.tensor(w), torch.tensor(t))
                for w, t in zip(words_, labels_, strict=True)
            ]
            adam.zero_grad()
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(p.values(), CLIP)
            adam.step()
            want = np.repeat([SCALE * one.item() for one in losses], TP)
            np.testing.assert_allclose(found, want, **FAST_TOLERANCE)
        read = session.get_tensors_data(list(named.values()))
    for name, t in named.items():
        want = p[name].detach().numpy()
        if name in AXES:
            want = np.stack(shard(want, TP, AXES[name]))
        np.testing.assert_allclose(read[t], want, err_msg=name, **FAST_TOLERANCE)


# -- layers of other models -----------------------------------------------------------------------


def heads_of(x: popxl.Tensor, heads: int) -> popxl.Tensor:
    """(tokens, width) as (heads, tokens, width / heads)."""
    return x.reshape((x.shape[0], heads, -1)).transpose((1, 0, 2))


def attend(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor, scale: float, bias: popxl.Tensor):
    scores = (q @ k.transpose((0, 2, 1))) * scale + bias
    y = ops.softmax(scores, axis=-1) @ v
    return y.transpose((1, 0, 2)).reshape((q.shape[1], -1))


def causal(tokens: int) -> popxl.Tensor:
    return popxl.constant(np.triu(np.full((tokens, tokens), -1e4, "f4"), 1))


class RMSNorm(addons.Module):
    def build(self, x: popxl.Tensor, eps: float) -> popxl.Tensor:
        weight = self.add_variable_input("weight", partial(np.ones, x.shape[-1]), x.dtype)
        return x / ops.sqrt(ops.mean(x * x, axis=-1, keepdims=True) + eps) * weight


class Llama(addons.Module):
    """A decoder layer over tensor-parallel shards: rotary halves, gated feed-forward."""

    def __init__(self, c: LlamaConfig, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.c, self.tp = c, tp
        shards, n = tp.transpose(), tp.group_size
        self.n_heads = c.num_attention_heads // n
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()
        width = c.hidden_size // n
        self.qkv = addons.Module.from_list(
            [Linear(width, bias=False, replica_grouping=shards) for _ in range(3)]
        )
        self.o = Linear(c.hidden_size, bias=False, replica_grouping=shards)
        inner = c.intermediate_size // n
        self.gate, self.up = (Linear(inner, bias=False, replica_grouping=shards) for _ in range(2))
        self.down = Linear(c.hidden_size, bias=False, replica_grouping=shards)

    def build(self, x: popxl.Tensor, cos: popxl.Tensor, sin: popxl.Tensor) -> popxl.Tensor:
        def turn(t: popxl.Tensor) -> popxl.Tensor:
            a, b = ops.split(t, 2, axis=-1)
            return t * cos + ops.concat([-b, a], axis=-1) * sin

        h = self.norm1(x, self.c.rms_norm_eps)
        q, k, v = (heads_of(linear(h), self.n_heads) for linear in self.qkv)
        scale = 1 / math.sqrt(q.shape[-1])
        h = self.o(attend(turn(q), turn(k), v, scale, causal(x.shape[0])))
        x = x + ops.collectives.replicated_all_reduce(h, group=self.tp)
        h = self.norm2(x, self.c.rms_norm_eps)
        h = self.down(ops.swish(self.gate(h)) * self.up(h))
        return x + ops.collectives.replicated_all_reduce(h, group=self.tp)


def run(
    ir: popxl.Ir, x: np.ndarray, module: addons.Module, weights: dict, *more: np.ndarray
) -> np.ndarray:
    """What a module makes of the same input on every replica; weights by flat name, sharded."""
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream(x.shape, popxl.float32)
        given = [ops.host_load(stream), *(popxl.constant(a) for a in more)]
        facts, graph = module.create_graph(*given)
        state = facts.init()
        (y,) = graph.bind(state).call(*given)
        out = addons.host_store(y)
    with popxl.Session(ir, "ipu_hw") as session:
        named = state.to_dict()
        assert set(named) == set(weights)
        session.write_variables_data({named[name]: a for name, a in weights.items()})
        n = ir.replication_factor
        found = session.run({stream: np.broadcast_to(x, (n, *x.shape)) if n > 1 else x})[out]
    return found


def test_a_llama_layer(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    c = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=4,
        attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(c, 0).eval()
    x = rng.normal(size=(5, 16)).astype("f4")
    cos, sin = LlamaRotaryEmbedding(c)(torch.tensor(x)[None], torch.arange(5)[None])
    mask = torch.triu(torch.full((5, 5), -1e4), 1)[None, None]
    with torch.no_grad():
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.normal_()
        want = layer(torch.tensor(x)[None], attention_mask=mask, position_embeddings=(cos, sin))
    want = (want[0] if isinstance(want, tuple) else want).reshape(5, 16).numpy()
    a, m = layer.self_attn, layer.mlp

    def cut(linear: torch.nn.Linear, axis: int) -> np.ndarray:
        return np.stack(shard(linear.weight.detach().numpy().T, 4, axis))

    weights = {
        "norm1.weight": layer.input_layernorm.weight.detach().numpy(),
        "norm2.weight": layer.post_attention_layernorm.weight.detach().numpy(),
        **{f"qkv.{i}.weight": cut(w, 1) for i, w in enumerate((a.q_proj, a.k_proj, a.v_proj))},
        "o.weight": cut(a.o_proj, 0),
        "gate.weight": cut(m.gate_proj, 1),
        "up.weight": cut(m.up_proj, 1),
        "down.weight": cut(m.down_proj, 0),
    }
    ir = popxl.Ir(replication=8)
    module = Llama(c, ir.replica_grouping(group_size=4))
    found = run(ir, x, module, weights, cos[0].numpy(), sin[0].numpy())
    for replica in found:
        np.testing.assert_allclose(replica, want, **TOLERANCE)


class Bloom(addons.Module):
    """A block over shards of whole heads; ``slopes`` differ by replica, as ALiBi's do."""

    def __init__(self, c: BloomConfig, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.c, self.tp, self.shards = c, tp, tp.transpose()
        width = c.hidden_size // tp.group_size
        self.norm1, self.norm2 = LayerNorm(), LayerNorm()
        self.qkv = Linear(3 * width, replica_grouping=self.shards)
        self.dense = Linear(c.hidden_size, bias=False, replica_grouping=self.shards)
        self.up = Linear(4 * width, replica_grouping=self.shards)
        self.down = Linear(c.hidden_size, bias=False, replica_grouping=self.shards)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        heads, width = self.c.n_head // self.tp.group_size, x.shape[1]
        slopes = self.add_variable_input(
            "slopes", partial(np.zeros, (heads, 1, 1)), x.dtype, replica_grouping=self.shards
        )
        bias = [
            self.add_variable_input(f"{name}_bias", partial(np.zeros, width), x.dtype)
            for name in ("dense", "down")
        ]
        places = popxl.constant(np.arange(x.shape[0], dtype="f4").reshape(1, 1, -1))
        q, k, v = (heads_of(t, heads) for t in ops.split(self.qkv(self.norm1(x)), 3, axis=1))
        h = attend(q, k, v, 1 / math.sqrt(q.shape[-1]), slopes * places + causal(x.shape[0]))
        h = ops.collectives.replicated_all_reduce(self.dense(h), group=self.tp)
        x = x + h + bias[0]
        h = self.down(ops.gelu(self.up(self.norm2(x))))
        return x + ops.collectives.replicated_all_reduce(h, group=self.tp) + bias[1]


def test_a_bloom_block(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    n, tokens = 4, 5
    c = BloomConfig(
        hidden_size=32, n_head=8, hidden_dropout=0.0, attention_dropout=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    block = BloomBlock(c, 0).eval()
    x = rng.normal(size=(tokens, 32)).astype("f4")
    alibi = build_alibi_tensor(torch.ones(1, tokens), 8, torch.float32)
    mask = torch.triu(torch.full((tokens, tokens), -1e4), 1)[None, None]
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(std=0.3)
        want = block(torch.tensor(x)[None], alibi=alibi, attention_mask=mask)[0]
    p = {name: t.detach().numpy() for name, t in block.named_parameters()}
    a, m = "self_attention.", "mlp."

    def joined(t: np.ndarray) -> np.ndarray:
        """(heads, 3, size, ...) of transformers as shards of (3, heads, size) columns."""
        t = t.reshape(n, 2, 3, 4, -1).swapaxes(1, 2).reshape(n, 24, -1)
        return t.swapaxes(1, 2)

    weights = {
        **{f"norm1.{w}": p[f"input_layernorm.{w}"] for w in ("weight", "bias")},
        **{f"norm2.{w}": p[f"post_attention_layernorm.{w}"] for w in ("weight", "bias")},
        "qkv.weight": joined(p[f"{a}query_key_value.weight"]),
        "qkv.bias": joined(p[f"{a}query_key_value.bias"])[:, 0],
        "dense.weight": np.stack(shard(p[f"{a}dense.weight"].T, n, 0)),
        "dense_bias": p[f"{a}dense.bias"],
        "up.weight": np.stack(shard(p[f"{m}dense_h_to_4h.weight"].T, n, 1)),
        "up.bias": np.stack(shard(p[f"{m}dense_h_to_4h.bias"], n, 0)),
        "down.weight": np.stack(shard(p[f"{m}dense_4h_to_h.weight"].T, n, 0)),
        "down_bias": p[f"{m}dense_4h_to_h.bias"],
        "slopes": (alibi[:, :, 1:2] - alibi[:, :, :1]).numpy().reshape(n, 2, 1, 1),
    }
    ir = popxl.Ir(replication=n)
    found = run(ir, x, Bloom(c, ir.replica_grouping()), weights)
    for replica in found:
        np.testing.assert_allclose(replica, want.reshape(tokens, 32), rtol=2e-3, atol=2e-3)


class T5Attention(addons.Module):
    """Attention with a learned bias by distance, gathered from a table of buckets."""

    def __init__(self, c: T5Config, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.c, self.tp, self.shards = c, tp, tp.transpose()
        self.norm = RMSNorm()
        width = c.num_heads * c.d_kv // tp.group_size
        self.q, self.k, self.v = (
            Linear(width, bias=False, replica_grouping=self.shards) for _ in range(3)
        )
        self.o = Linear(c.d_model, bias=False, replica_grouping=self.shards)

    def build(self, x: popxl.Tensor, buckets: popxl.Tensor) -> popxl.Tensor:
        heads = self.c.num_heads // self.tp.group_size
        shape = (self.c.relative_attention_num_buckets, heads)
        table = self.add_variable_input(
            "bias", partial(np.zeros, shape), x.dtype, replica_grouping=self.shards
        )
        bias = ops.gather(table, buckets).transpose((2, 0, 1))
        h = self.norm(x, self.c.layer_norm_epsilon)
        h = attend(*(heads_of(t(h), heads) for t in (self.q, self.k, self.v)), 1.0, bias)
        return x + ops.collectives.replicated_all_reduce(self.o(h), group=self.tp)


def test_a_t5_attention_layer(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    n, tokens = 2, 7
    c = T5Config(d_model=16, d_kv=4, num_heads=4, relative_attention_num_buckets=8, d_ff=8)
    layer = T5LayerSelfAttention(c, has_relative_attention_bias=True, layer_idx=0).eval()
    x = rng.normal(size=(tokens, 16)).astype("f4")
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.4)
        want = layer(torch.tensor(x)[None])[0].reshape(tokens, 16)
    a = layer.SelfAttention
    far = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
    buckets = a._relative_position_bucket(far, True, 8, c.relative_attention_max_distance)
    weights = {
        name: np.stack(shard(getattr(a, name).weight.detach().numpy().T, n, axis))
        for name, axis in (("q", 1), ("k", 1), ("v", 1), ("o", 0))
    }
    weights = {f"{name}.weight": w for name, w in weights.items()} | {
        "norm.weight": layer.layer_norm.weight.detach().numpy(),
        "bias": np.stack(shard(a.relative_attention_bias.weight.detach().numpy(), n, 1)),
    }
    ir = popxl.Ir(replication=n)
    module = T5Attention(c, ir.replica_grouping())
    found = run(ir, x, module, weights, buckets.numpy().astype("i4"))
    for replica in found:
        np.testing.assert_allclose(replica, want, **TOLERANCE)
