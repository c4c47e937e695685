"""Forward passes of models, cut over replicas and not, against NumPy and torch."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.layers import Conv2D, Embedding, LayerNorm, Linear
from popxl_addons.ops.replicated_all_reduce_TP import (
    replicated_all_reduce_identical_grad_inputs,
    replicated_all_reduce_identical_inputs,
)

HALF = {"rtol": 2e-2, "atol": 2e-2}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}


class Mlp(addons.Module):
    """Column-parallel then row-parallel."""

    def __init__(self, hidden: int, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.tp = tp
        each = tp.transpose()
        self.up = Linear(4 * hidden // tp.group_size, replica_grouping=each)
        self.down = Linear(hidden, bias=False, replica_grouping=each)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        bias = self.add_variable_input("bias", lambda: np.zeros(x.shape[-1]), x.dtype)
        x = replicated_all_reduce_identical_inputs(x, group=self.tp)
        y = self.down(ops.gelu(self.up(x)))
        return replicated_all_reduce_identical_grad_inputs(y, group=self.tp) + bias


class Attention(addons.Module):
    """Causal attention over (rows, hidden), heads cut over replicas."""

    def __init__(self, hidden: int, heads: int, batch: int, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.tp, self.batch = tp, batch
        self.heads = heads // tp.group_size
        self.dim = hidden // heads
        each = tp.transpose()
        self.qkv = Linear(3 * self.heads * self.dim, replica_grouping=each)
        self.out = Linear(hidden, bias=False, replica_grouping=each)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        rows = x.shape[0] // self.batch
        x = replicated_all_reduce_identical_inputs(x, group=self.tp)
        q, k, v = (
            t.reshape((self.batch, rows, self.heads, self.dim)).transpose((0, 2, 1, 3))
            for t in ops.split(self.qkv(x), 3, axis=1)
        )
        scores = (q @ k.transpose((0, 1, 3, 2))) * (self.dim**-0.5)
        low = popxl.constant(np.triu(np.full((rows, rows), -1e4), 1), x.dtype)
        y = ops.softmax(scores + low, axis=-1) @ v
        y = y.transpose((0, 2, 1, 3)).reshape((x.shape[0], self.heads * self.dim))
        return replicated_all_reduce_identical_grad_inputs(self.out(y), group=self.tp)


class Block(addons.Module):
    """Pre-norm block."""

    def __init__(self, hidden: int, heads: int, batch: int, tp: popxl.ReplicaGrouping) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(), LayerNorm()
        self.attention = Attention(hidden, heads, batch, tp)
        self.mlp = Mlp(hidden, tp)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def _whole_weights(rng: np.random.Generator, hidden: int) -> dict[str, np.ndarray]:
    shapes = {
        "ln_1.weight": (hidden,), "ln_1.bias": (hidden,),
        "ln_2.weight": (hidden,), "ln_2.bias": (hidden,),
        "attention.qkv.weight": (hidden, 3 * hidden), "attention.qkv.bias": (3 * hidden,),
        "attention.out.weight": (hidden, hidden),
        "mlp.up.weight": (hidden, 4 * hidden), "mlp.up.bias": (4 * hidden,),
        "mlp.down.weight": (4 * hidden, hidden), "mlp.bias": (hidden,),
    }  # fmt: skip
    return {name: rng.normal(size=shape) * 0.2 for name, shape in shapes.items()}


def _cut(name: str, whole: np.ndarray, tp: int) -> np.ndarray:
    """A weight's shards, as the variable's host array."""
    if tp == 1:
        return whole
    if "qkv" in name:
        parts = [addons.shard(part, tp, -1) for part in np.split(whole, 3, axis=-1)]
        return np.concatenate(parts, axis=-1)
    if ".up." in name:
        return addons.shard(whole, tp, -1)
    if name in ("attention.out.weight", "mlp.down.weight"):
        return addons.shard(whole, tp, 0)
    return whole


def _norm(x: torch.Tensor, w: np.ndarray, b: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], torch.tensor(w), torch.tensor(b))


def _torch_block(x: np.ndarray, w: dict[str, np.ndarray], heads: int, batch: int) -> np.ndarray:
    t = torch.tensor(x)
    rows, hidden = t.shape[0] // batch, t.shape[1]
    h = _norm(t, w["ln_1.weight"], w["ln_1.bias"])
    qkv = h @ torch.tensor(w["attention.qkv.weight"]) + torch.tensor(w["attention.qkv.bias"])
    q, k, v = (
        p.reshape(batch, rows, heads, hidden // heads).transpose(1, 2) for p in qkv.chunk(3, -1)
    )
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    t = t + y.transpose(1, 2).reshape(-1, hidden) @ torch.tensor(w["attention.out.weight"])
    h = _norm(t, w["ln_2.weight"], w["ln_2.bias"])
    h = h @ torch.tensor(w["mlp.up.weight"]) + torch.tensor(w["mlp.up.bias"])
    h = torch.nn.functional.gelu(h, approximate="tanh") @ torch.tensor(w["mlp.down.weight"])
    return (t + h + torch.tensor(w["mlp.bias"])).numpy()


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float16], ids=["single", "half"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gpt_blocks_with_weights_from_remote_memory(
    tp: int, dtype: popxl.dtype, rng: np.random.Generator
) -> None:
    layers, batch, rows, hidden, heads = 3, 2, 5, 16, 4
    ir = popxl.Ir(replication=tp)
    with ir.main_graph, popxl.in_sequence():
        group = ir.replica_grouping(stride=1, group_size=tp)
        inputs = addons.InputStreams(x=((batch * rows, hidden), dtype))
        outputs = addons.OutputStreams(y=((batch * rows, hidden), dtype))
        x = ops.host_load(inputs.x)
        facts, graph = Block(hidden, heads, batch, group).create_graph(x)
        buffers = addons.named_variable_buffers(facts, entries=layers, shard_over_dict=False)
        state = addons.NamedTensors()
        for i in range(layers):
            state.insert(i, facts.init_remote(buffers, i, str(i), empty=True))

        def layer(t: popxl.Tensor, i: popxl.Tensor):
            load, names = addons.load_remote_graph(buffers, layers)
            weights = addons.NamedTensors.pack(names, load.call(i))
            (t,) = graph.bind(weights).call(t)
            return t, i + 1

        i = popxl.constant(0, popxl.int32)
        x, _ = ops.repeat(ir.create_graph(layer, x, i), layers, x, i)
        ops.host_store(outputs.y, x)
    from popxl_addons.patterns import apply_pre_alias_patterns

    apply_pre_alias_patterns(ir)
    session = addons.TaskSession(inputs, outputs, state, ir=ir, device_desc="ipu_hw")
    weights = [_whole_weights(rng, hidden) for _ in range(layers)]
    session.write_variables_data(
        {
            state[f"{i}.{name}"]: _cut(name, w, tp).astype(dtype.as_numpy())
            for i in range(layers)
            for name, w in weights[i].items()
        }
    )
    x0 = rng.normal(size=(batch * rows, hidden))
    array = np.broadcast_to(x0.astype(dtype.as_numpy()), (tp, *x0.shape)) if tp > 1 else x0
    with session:
        got = session.run({inputs.x: np.asarray(array).astype(dtype.as_numpy())})[outputs.y]
    expected = x0
    for w in weights:
        expected = _torch_block(expected, w, heads, batch)
    tolerance = HALF if dtype == popxl.float16 else SINGLE
    for replica in got.reshape(tp, *x0.shape):
        np.testing.assert_allclose(replica, expected, **tolerance)


class Encoder(addons.Module):
    """BERT-like: embeddings, unmasked attention under a padding mask, pooled classes."""

    def build(self, words: popxl.Tensor, lengths: popxl.Tensor) -> popxl.Tensor:
        batch, rows = words.shape
        self.words = Embedding(popxl.float32, 32, 8)
        self.norm, self.pool = LayerNorm(), Linear(8)
        self.classes = Linear(3)
        places = self.add_variable_input("places", lambda: np.zeros((rows, 8)), popxl.float32)
        x = self.words(words) + places
        x = self.norm(x.reshape((batch * rows, 8))).reshape((batch, rows, 8))
        at = popxl.constant(np.arange(rows).reshape(1, rows), popxl.int32)
        there = ops.greater(lengths.reshape((batch, 1)), at)
        zero, low = popxl.constant(0.0), popxl.constant(-1e9)
        mask = ops.where(there, zero, low).reshape((batch, 1, rows))
        y = ops.softmax(x @ x.transpose((0, 2, 1)) + mask, axis=-1) @ x
        first = ops.squeeze(y[:, 0:1, :], [1])
        return ops.softmax(self.classes(ops.tanh(self.pool(first))), axis=-1)


def test_an_encoder_with_padding(rng: np.random.Generator) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        inputs = addons.InputStreams(words=((3, 6), popxl.int32), lengths=((3,), popxl.int32))
        words, lengths = ops.host_load(inputs.words), ops.host_load(inputs.lengths)
        facts, graph = Encoder().create_graph(words, lengths)
        variables = facts.init()
        (probs,) = graph.bind(variables).call(words, lengths)
        best = ops.argmax(probs, dim=1)
        outputs = addons.OutputStreams(probs=(probs.shape, probs.dtype), best=((3,), popxl.int32))
        ops.host_store(outputs.probs, probs)
        ops.host_store(outputs.best, best)
    session = addons.TaskSession(inputs, outputs, variables, ir=ir, device_desc="cpu")
    w = {
        name: rng.normal(size=v.shape).astype("float32")
        for name, v in variables.named_tensors.items()
    }
    session.write_variables_data({variables[name]: array for name, array in w.items()})
    ids = rng.integers(0, 32, (3, 6)).astype("int32")
    lengths_np = np.array([6, 3, 1], "int32")
    with session:
        found = session.run({inputs.words: ids, inputs.lengths: lengths_np})
    x = torch.tensor(w["words.weight"][ids] + w["places"])
    x = _norm(x, w["norm.weight"], w["norm.bias"])
    there = torch.arange(6) < torch.tensor(lengths_np)[:, None]
    scores = (x @ x.transpose(1, 2)).masked_fill(~there[:, None], -torch.inf)
    pooled = (scores.softmax(-1) @ x)[:, 0]
    hidden = (pooled @ torch.tensor(w["pool.weight"]) + torch.tensor(w["pool.bias"])).tanh()
    logits = hidden @ torch.tensor(w["classes.weight"]) + torch.tensor(w["classes.bias"])
    np.testing.assert_allclose(found[outputs.probs], logits.softmax(-1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[outputs.best], logits.argmax(-1))


class ConvNet(addons.Module):
    """Convolutions with batch norm, a residual, pooling and a classifier."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        self.stem = Conv2D(8, 3, (2, 2), (1, 1, 1, 1), bias=False)
        self.grouped = Conv2D(8, (3, 1), (1, 1), "same_upper", groups=4)
        self.dilated = Conv2D(6, 3, (1, 1), (2, 1, 2, 1), dilations=(2, 1))
        self.head = Linear(5)
        scale, bias, mean, var = (
            self.add_variable_input(n, lambda: np.ones(8), x.dtype) for n in ("s", "b", "m", "v")
        )
        y = ops.relu(ops.batch_norm_inference(self.stem(x), scale, bias, mean, var))
        y = ops.max_pool(y, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
        y = y + ops.swish(self.grouped(y))
        y = ops.average_pool(self.dilated(y), (2, 2), stride=(2, 2))
        return self.head(ops.mean(y, axis=[2, 3]))


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_conv_net(replicas: int, rng: np.random.Generator) -> None:
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((2, 3, 17, 15), popxl.float32)
        x = ops.host_load(stream)
        facts, graph = ConvNet().create_graph(x)
        variables = facts.init()
        (y,) = graph.bind(variables).call(x)
        out = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(out, y)
    w = {
        name: np.abs(rng.normal(size=v.shape)).astype("float32") * 0.3
        for name, v in variables.named_tensors.items()
    }
    array = rng.normal(size=(replicas, 2, 3, 17, 15)).astype("float32")
    session = popxl.Session(ir, "ipu_hw")
    session.write_variables_data({variables[name]: a for name, a in w.items()})
    with session:
        got = session.run({stream: array if replicas > 1 else array[0]})[out]
    f = torch.nn.functional
    p = {name: torch.tensor(a) for name, a in w.items()}
    for replica, given in zip(got.reshape(replicas, 2, 5), torch.tensor(array), strict=True):
        t = f.conv2d(given, p["stem.weight"], None, 2, 1)
        t = f.relu(f.batch_norm(t, p["m"], p["v"], p["s"], p["b"]))
        t = f.max_pool2d(t, 3, 2, 1)
        t = t + f.silu(f.conv2d(t, p["grouped.weight"], p["grouped.bias"].flatten(), 1,
                                (1, 0), 1, 4))  # fmt: skip
        t = f.conv2d(t, p["dilated.weight"], p["dilated.bias"].flatten(), 1, (2, 1), (2, 1))
        t = f.avg_pool2d(t, 2, 2).mean((2, 3))
        t = t @ p["head.weight"] + p["head.bias"]
        np.testing.assert_allclose(replica, t, rtol=1e-4, atol=1e-5)
