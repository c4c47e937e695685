"""Models whose weights are mapped from transformers' by name, over tensor-parallel replicas."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
import torch
from popxl import ops
from popxl_addons.array_munging import pad_axis, shard, tensor_parallel_input
from popxl_addons.layers import Embedding, LayerNorm, Linear
from popxl_addons.named_tensors import NamedTensorData
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_table_constants
from popxl_addons.patterns import apply_pre_alias_patterns
from torch.nn import functional as F
from transformers import BertConfig, GPTJConfig, GPTNeoXConfig
from transformers.models.bert.modeling_bert import BertLayer, BertLMPredictionHead
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer, GPTNeoXRotaryEmbedding
from transformers.models.gptj.modeling_gptj import GPTJBlock

TOLERANCE = {"rtol": 2e-3, "atol": 2e-4}
TP, HEADS, HIDDEN, TOKENS, ROTARY = 4, 8, 64, 5, 4
SIZE = HIDDEN // HEADS


def split_heads(x: popxl.Tensor, batch: int) -> popxl.Tensor:
    """(batch * tokens, width) as (batch, tokens, heads, size)."""
    return x.reshape((batch, x.shape[0] // batch, -1, SIZE))


def attend(q: popxl.Tensor, k: popxl.Tensor, v: popxl.Tensor, mask: popxl.Tensor) -> popxl.Tensor:
    """Each (batch, tokens, heads, size); the result is (batch * tokens, heads * size)."""
    q, k, v = (t.transpose((0, 2, 1, 3)) for t in (q, k, v))
    scores = q @ k.transpose((0, 1, 3, 2)) * (1 / math.sqrt(SIZE)) + mask
    y = (ops.softmax(scores, axis=-1) @ v).transpose((0, 2, 1, 3))
    return y.reshape((y.shape[0] * y.shape[1], -1))


def causal(tokens: int) -> np.ndarray:
    return np.triu(np.full((tokens, tokens), -1e4, "f4"), 1)


class RowParallel(addons.Module):
    """A linear layer over shards of its input; the bias is added once."""

    def __init__(self, width: int, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.tp = tp
        self.product = Linear(width, bias=False, replica_grouping=tp.transpose())

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        y = replicated_all_reduce_identical_grad_inputs(self.product(x), group=self.tp)
        return y + self.add_variable_input("bias", partial(np.zeros, y.shape[-1]), x.dtype)


class ParallelBlock(addons.Module):
    """GPT-J's and GPT-NeoX's: attention and feed-forward layer side by side, rotary positions.

    GPT-J turns neighbours and has one norm; GPT-NeoX turns halves and has two.
    """

    def __init__(self, tp: popxl.ReplicaGrouping, neox: bool) -> None:
        super().__init__()
        self.tp, self.neox = tp, neox
        shards, width = tp.transpose(), HIDDEN // TP
        self.norm = LayerNorm()
        self.norm2 = LayerNorm() if neox else None
        self.q, self.k, self.v = (
            Linear(width, bias=neox, replica_grouping=shards) for _ in range(3)
        )
        self.o = (
            RowParallel(HIDDEN, tp) if neox else Linear(HIDDEN, bias=False, replica_grouping=shards)
        )
        self.up = Linear(4 * width, replica_grouping=shards)
        self.down = RowParallel(HIDDEN, tp)

    def turn(self, t: popxl.Tensor) -> popxl.Tensor:
        sin, cos = trig_table_constants(TOKENS, ROTARY)
        if not self.neox:
            return rotary_pos_embed(t, sin, cos, ROTARY)
        sin, cos = (x.reshape((1, TOKENS, 1, ROTARY // 2)) for x in (sin, cos))
        a, b, rest = ops.split(t, [ROTARY // 2, ROTARY // 2, SIZE - ROTARY], axis=3)
        return ops.concat([a * cos - b * sin, b * cos + a * sin, rest], axis=3)

    def build(self, x: popxl.Tensor, batch: int) -> popxl.Tensor:
        h = replicated_all_reduce_identical_inputs(self.norm(x), group=self.tp)
        q, k, v = (split_heads(linear(h), batch) for linear in (self.q, self.k, self.v))
        mask = popxl.constant(causal(TOKENS))
        attended = self.o(attend(self.turn(q), self.turn(k), v, mask))
        if not self.neox:
            attended = replicated_all_reduce_identical_grad_inputs(attended, group=self.tp)
        if self.norm2:
            h = replicated_all_reduce_identical_inputs(self.norm2(x), group=self.tp)
            fed = ops.geluerf(self.up(h))
        else:
            fed = ops.gelu(self.up(h))
        return x + attended + self.down(fed)


def columns(linear: torch.nn.Linear) -> dict[str, np.ndarray]:
    """A linear layer's parameters, cut by its outputs."""
    made = {"weight": shard(linear.weight.detach().numpy().T, TP, 1)}
    if linear.bias is not None:
        made["bias"] = shard(linear.bias.detach().numpy(), TP, 0)
    return made


def rows(linear: torch.nn.Linear) -> dict[str, np.ndarray]:
    """The same, cut by its inputs; the bias is whole."""
    made = {"product.weight": shard(linear.weight.detach().numpy().T, TP, 0)}
    return {**made, "bias": linear.bias.detach().numpy()}


def plain(norm: torch.nn.Module) -> dict[str, np.ndarray]:
    return {"weight": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}


def named(**modules: dict[str, np.ndarray]) -> NamedTensorData:
    return NamedTensorData.from_dict(
        {f"{m}.{name}": a for m, arrays in modules.items() for name, a in arrays.items()}
    )


def mapped(state: addons.NamedTensors, data: NamedTensorData) -> addons.WeightsDict:
    assert set(state.keys_flat()) == set(data.keys_flat())
    return addons.WeightsDict(
        {t: np.ascontiguousarray(a, "f4") for t, a in state.to_mapping(data).items()}
    )


def shake(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.2)


def check_block(neox: bool, data: NamedTensorData, want: np.ndarray, x: np.ndarray) -> None:
    """Over two groups of replicas, each with its own samples, in two transfers."""
    batch = x.shape[0] // 4
    ir = popxl.Ir(replication=2 * TP)
    ir.num_host_transfers = 2
    with ir.main_graph, popxl.in_sequence():
        streams = addons.InputStreams(x=((batch * TOKENS, HIDDEN), popxl.float32))
        outputs = addons.OutputStreams(y=((batch * TOKENS, HIDDEN), popxl.float32))
        module = ParallelBlock(ir.replica_grouping(group_size=TP), neox)
        facts, graph = module.create_graph(streams.x.spec, batch)
        state = facts.init()
        for _ in range(2):
            (y,) = graph.bind(state).call(ops.host_load(streams.x))
            ops.host_store(outputs.y, y)
    apply_pre_alias_patterns(ir)
    samples = x.reshape(4, batch * TOKENS, HIDDEN)
    given = tensor_parallel_input(samples, TP, 2 * TP)
    with addons.TaskSession(streams, outputs, state, 1, ir, "ipu_hw") as session:
        session.write_variables_data(mapped(state, data))
        found = session.run({session.inputs.x: given})[session.outputs.y]
    expected = tensor_parallel_input(want.reshape(samples.shape), TP, 2 * TP)
    np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_a_gptj_block(rng: np.random.Generator) -> None:
    c = GPTJConfig(
        n_embd=HIDDEN, n_head=HEADS, rotary_dim=ROTARY, n_positions=TOKENS,
        attn_implementation="eager",
    )  # fmt: skip
    block = GPTJBlock(c, 0).eval()
    shake(block)
    x = rng.normal(size=(8, TOKENS, HIDDEN)).astype("f4")
    a, places = block.attn, torch.arange(TOKENS)[None].repeat(8, 1)
    with torch.no_grad():
        want = block(
            torch.tensor(x),
            attention_mask=torch.tensor(causal(TOKENS))[None, None],
            position_ids=places,
        )
    data = named(
        norm=plain(block.ln_1), q=columns(a.q_proj), k=columns(a.k_proj), v=columns(a.v_proj),
        o={"weight": shard(a.out_proj.weight.detach().numpy().T, TP, 0)},
        up=columns(block.mlp.fc_in), down=rows(block.mlp.fc_out),
    )  # fmt: skip
    check_block(False, data, (want[0] if isinstance(want, tuple) else want).numpy(), x)


def test_a_gpt_neox_block(rng: np.random.Generator) -> None:
    """As in Dolly: half of each head's columns turn, in halves."""
    c = GPTNeoXConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=4 * HIDDEN,
        rotary_pct=ROTARY / SIZE, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    block = GPTNeoXLayer(c, 0).eval()
    shake(block)
    x = rng.normal(size=(8, TOKENS, HIDDEN)).astype("f4")
    places = torch.arange(TOKENS)[None]
    with torch.no_grad():
        want = block(
            torch.tensor(x),
            attention_mask=torch.tensor(causal(TOKENS))[None, None],
            position_ids=places,
            position_embeddings=GPTNeoXRotaryEmbedding(c)(torch.tensor(x), places),
        )
    joined = block.attention.query_key_value
    parts = []
    for i in range(3):  # columns are by head, then q, k, v
        linear = torch.nn.Linear(HIDDEN, HIDDEN)
        for name in ("weight", "bias"):
            p = getattr(joined, name).detach()
            p = p.reshape(HEADS, 3, SIZE, *p.shape[1:])[:, i]
            setattr(linear, name, torch.nn.Parameter(p.reshape(HIDDEN, *p.shape[2:])))
        parts.append(columns(linear))
    data = named(
        norm=plain(block.input_layernorm), norm2=plain(block.post_attention_layernorm),
        q=parts[0], k=parts[1], v=parts[2], o=rows(block.attention.dense),
        up=columns(block.mlp.dense_h_to_4h), down=rows(block.mlp.dense_4h_to_h),
    )  # fmt: skip
    check_block(True, data, (want[0] if isinstance(want, tuple) else want).numpy(), x)


class Bert(addons.Module):
    """A layer with the norms after it, then the head over a sharded vocabulary; masked words."""

    def __init__(self, tp: popxl.ReplicaGrouping, vocab: int) -> None:
        super().__init__()
        self.tp = tp
        shards, width = tp.transpose(), HIDDEN // TP
        self.q, self.k, self.v = (Linear(width, replica_grouping=shards) for _ in range(3))
        self.o, self.norm = RowParallel(HIDDEN, tp), LayerNorm()
        self.up = Linear(4 * width, replica_grouping=shards)
        self.down, self.norm2 = RowParallel(HIDDEN, tp), LayerNorm()
        self.dense, self.norm3 = Linear(HIDDEN), LayerNorm()
        size = Embedding.get_vocab_shard_size(vocab, TP)
        self.decoder = Linear(size, replica_grouping=shards)

    def enter(self, x: popxl.Tensor) -> popxl.Tensor:
        return replicated_all_reduce_identical_inputs(x, group=self.tp)

    def build(
        self, x: popxl.Tensor, mask: popxl.Tensor, labels: popxl.Tensor, ignore: popxl.Tensor
    ) -> popxl.Tensor:
        batch, eps = mask.shape[0], 1e-12
        h = self.enter(x)
        q, k, v = (split_heads(linear(h), batch) for linear in (self.q, self.k, self.v))
        x = self.norm(x + self.o(attend(q, k, v, mask)), eps)
        x = self.norm2(x + self.down(ops.geluerf(self.up(self.enter(x)))), eps)
        x = self.norm3(ops.geluerf(self.dense(x)), eps)
        logits = self.decoder(self.enter(x))
        return cross_entropy_sharded_loss(logits, labels, ignore, replica_grouping=self.tp)


def bert_data(layer: BertLayer, head: BertLMPredictionHead, vocab: int) -> NamedTensorData:
    a, full = layer.attention, TP * Embedding.get_vocab_shard_size(vocab, TP)
    last = torch.nn.Linear(HIDDEN, full)
    last.weight.data = torch.tensor(pad_axis(head.decoder.weight.detach().numpy(), full, 0))
    last.bias.data = torch.tensor(pad_axis(head.decoder.bias.detach().numpy(), full, 0, -1e4))
    return named(
        q=columns(a.self.query), k=columns(a.self.key), v=columns(a.self.value),
        o=rows(a.output.dense), norm=plain(a.output.LayerNorm),
        up=columns(layer.intermediate.dense), down=rows(layer.output.dense),
        norm2=plain(layer.output.LayerNorm), norm3=plain(head.transform.LayerNorm),
        dense={
            "weight": head.transform.dense.weight.detach().numpy().T,
            "bias": head.transform.dense.bias.detach().numpy(),
        },
        decoder=columns(last),
    )  # fmt: skip


def test_gradients_of_a_bert_layer_with_masked_words(rng: np.random.Generator) -> None:
    """The loss and the gradient of every parameter, activations computed again."""
    vocab, batch = 50, 2
    c = BertConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=4 * HIDDEN,
        vocab_size=vocab, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    layer, head = BertLayer(c), BertLMPredictionHead(c)
    shake(layer)
    shake(head)
    x = rng.normal(size=(batch, TOKENS, HIDDEN)).astype("f4")
    padding = np.zeros((batch, 1, 1, TOKENS), "f4")
    padding[1, ..., 3:] = -1e4
    labels = rng.integers(0, vocab, (batch * TOKENS,)).astype("i4")
    labels[::3] = -100
    y = layer(torch.tensor(x), attention_mask=torch.tensor(padding))
    y = head(y[0] if isinstance(y, tuple) else y)
    loss = F.cross_entropy(y.reshape(-1, vocab), torch.tensor(labels).long())
    loss.backward()
    ir = popxl.Ir(replication=TP)
    offsets = Embedding.get_offsets(vocab, TP)
    with ir.main_graph, popxl.in_sequence():
        streams = [popxl.h2d_stream(s, popxl.int32) for s in (labels.shape, ())]
        tensors = [popxl.constant(x.reshape(-1, HIDDEN)), popxl.constant(padding)]
        tensors += [ops.host_load(s) for s in streams]
        facts, graph = Bert(ir.replica_grouping(), vocab).create_graph(*tensors)
        params = graph.args.tensors
        grad = addons.recompute_graph(addons.autodiff(graph, grads_required=params))
        state = facts.init()
        info = graph.bind(state).call_with_info(*tensors)
        found = grad.call(1.0, args=grad.grad_graph_info.inputs_dict(info))
        inner = {t: name for name, t in graph.args.named_tensors.items()}
        order = [inner[p] for p in params]
        outs = [addons.host_store(t) for t in (info.outputs[0], *found)]
    apply_pre_alias_patterns(ir)
    weights = mapped(state, bert_data(layer, head, vocab))
    with popxl.Session(ir, "ipu_hw") as session:
        session.write_variables_data(weights)
        given = {
            streams[0]: np.stack([labels - o for o in offsets]),
            streams[1]: np.array([-100 - o for o in offsets]),
        }
        results = session.run({s: a.astype("i4") for s, a in given.items()})
    np.testing.assert_allclose(results[outs[0]], np.full(TP, loss.item()), **TOLERANCE)
    for module in (layer, head):
        for p in module.parameters():
            p.data = torch.zeros_like(p) if p.grad is None else p.grad
    want = bert_data(layer, head, vocab).to_dict()
    for name, out in zip(order, outs[1:], strict=True):
        got, expected = results[out], want[name]
        if got.shape != expected.shape:
            expected = np.broadcast_to(expected, got.shape)
        if name == "decoder.bias":
            expected = np.where(expected < -1e3, 0, expected)
        np.testing.assert_allclose(got, expected, err_msg=name, **TOLERANCE)
