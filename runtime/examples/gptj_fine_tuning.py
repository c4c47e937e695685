"""Fine-tuning of a tiny GPT-J in phases, beside the same in plain PyTorch.

Weights and Adam's moments lie in remote buffers, one entry per layer. Each phase holds one layer:
it runs forward for all micro-batches, later backward for all of them, then its weights are updated.
"""

import numpy as np
import popxl
import popxl_addons as addons
import torch
from popxl import ops
from popxl_addons.layers import LayerNorm, Linear
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_table_constants
from popxl_addons.optimizers import AdamOptimizerStep
from popxl_addons.remote import create_remote_buffer, load_remote, store_remote

VOCAB, HIDDEN, HEADS, ROTARY, LAYERS = 16, 16, 2, 4, 2
BATCH, SEQ, MICRO_BATCHES, STEPS = 2, 8, 2, 12
ADAM = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-5, "weight_decay": 0.01}
FLOATS, INTS = popxl.float32, popxl.int32


class Embedding(addons.Module):
    """Token ids, (batch * seq,), to vectors."""

    def build(self, ids: popxl.Tensor) -> popxl.Tensor:
        """(batch * seq, hidden)."""
        table = self.add_variable_input("weight", lambda: np.zeros((VOCAB, HIDDEN), "float32"))
        return ops.gather(table, ids)


class Block(addons.Module):
    """GPT-J's decoder layer: attention and feed-forward beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.qkv = LayerNorm(), Linear(3 * HIDDEN, bias=False)
        self.out, self.up, self.down = (
            Linear(HIDDEN, bias=False),
            Linear(4 * HIDDEN),
            Linear(HIDDEN),
        )

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """(batch * seq, hidden) to the same."""
        h = self.ln(x)
        return x + self.out(self.attend(h)) + self.down(ops.gelu(self.up(h)))

    def attend(self, h: popxl.Tensor) -> popxl.Tensor:
        """Causal attention with rotary positions, (batch * seq, hidden)."""
        split = ops.split(self.qkv(h), 3, axis=1)
        q, k, v = (t.reshape((BATCH, SEQ, HEADS, HIDDEN // HEADS)) for t in split)
        sin, cos = trig_table_constants(SEQ, ROTARY, dtype=FLOATS)
        q, k = (rotary_pos_embed(t, sin, cos, ROTARY) for t in (q, k))
        q, k, v = (t.transpose((0, 2, 1, 3)) for t in (q, k, v))
        mask = popxl.constant(np.triu(np.full((SEQ, SEQ), -1e4), 1), FLOATS)
        scores = q @ k.transpose((0, 1, 3, 2)) * (HIDDEN // HEADS) ** -0.5 + mask
        attended = ops.softmax(scores, -1) @ v
        return attended.transpose((0, 2, 1, 3)).reshape((BATCH * SEQ, HIDDEN))


class Head(addons.Module):
    """Layer norm, logits, and the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.lm = LayerNorm(), Linear(VOCAB)

    def build(self, x: popxl.Tensor, labels: popxl.Tensor) -> popxl.Tensor:
        """The mean loss of a micro-batch."""
        return ops.nll_loss(ops.softmax(self.lm(self.ln(x)), -1), labels)


class HeadWithGradient(addons.Module):
    """The head forward and backward: nothing of it is kept for later."""

    def build(self, x: popxl.Tensor, labels: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        """The loss, and its gradient by x."""
        factories, graph = Head().create_graph(x, labels)
        accumulators, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, grads_required=graph.graph.inputs[:1]
        )
        call = graph.bind(self.add_variable_inputs("fwd", factories)).call_with_info(x, labels)
        bound = grad.bind(self.add_variable_inputs("bwd", accumulators))
        (dx,) = bound.call(1.0, args=grad.grad_graph_info.inputs_dict(call))
        return call.outputs[0], dx


class Weights:
    """The remote weights of a phase, and Adam's state for them.

    Args:
        factories: of one entry's weights.
        entries: layers.
    """

    def __init__(self, factories: addons.NamedVariableFactories, entries: int) -> None:
        self.buffers = addons.named_variable_buffers(factories, entries, shard_over_dict=False)
        self.variables = [
            factories.init_remote(self.buffers, n, empty=True) for n in range(entries)
        ]
        self.steps, self.states = {}, {}
        for name, factory in factories.to_dict().items():
            spec = popxl.TensorSpec(factory.shape, factory.dtype)
            module = AdamOptimizerStep()
            state, step = module.create_graph(spec, spec, first_order_dtype=FLOATS, **ADAM)
            buffers = addons.named_variable_buffers(state, entries, shard_over_dict=False)
            for n in range(entries):
                state.init_remote(buffers, n, f"{name}.{n}")
            self.steps[name], self.states[name] = step, buffers

    def load(self, entry: popxl.Tensor) -> addons.NamedTensors:
        """The weights of an entry."""
        return load_remote(self.buffers, entry)

    def update(
        self, weights: addons.NamedTensors, grads: addons.NamedTensors, entry: popxl.Tensor
    ) -> None:
        """Adam for the weights of an entry, which are stored again."""
        for name, weight in weights.to_dict().items():
            state = load_remote(self.states[name], entry)
            self.steps[name].bind(state).call(weight, grads[name])
            store_remote(self.states[name], state, entry)
        store_remote(self.buffers, weights, entry)


class Phase:
    """A part of the model, forward and backward over all micro-batches of a row.

    Args:
        module: the part.
        spec: of its input.
        entries: layers that it stands for.
        load: the input's stream, or None: the row's activations.
        xs: activations, row by row.
        dxs: their gradients.
    """

    def __init__(
        self,
        module: addons.Module,
        spec: popxl.TensorSpec,
        entries: int,
        load: popxl.HostToDeviceStream | None,
        xs: popxl.RemoteBuffer,
        dxs: popxl.RemoteBuffer,
    ) -> None:
        factories, graph = module.create_graph(spec)
        self.weights = Weights(factories, entries)
        inputs = [] if load else graph.graph.inputs[:1]
        self.accumulators, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, grads_required=inputs
        )
        grad = addons.recompute_graph(grad)
        x, y, dy = graph.graph.inputs[0], graph.graph.outputs[0], grad.graph.inputs[0]
        offset = 0 if load else 1  # activations of row n + 1 are what layer n makes
        loads = {x: load or (xs, 0), dy: (dxs, offset)}
        stores = {y: (xs, offset), **dict.fromkeys(grad.graph.outputs, (dxs, 0))}
        self.forward, self.backward = addons.batch_serialise_fwd_and_grad(
            graph, grad, graph.args, MICRO_BATCHES, loads, {}, stores,
            rows=entries, io_mode="compute",
        )  # fmt: skip

    def run_forward(self, entry: popxl.Tensor) -> None:
        """Load a layer's weights and run all micro-batches."""
        self.forward.graph.bind(self.weights.load(entry)).call(entry)

    def run_backward(self, entry: popxl.Tensor) -> None:
        """Gradients of all micro-batches, and the update."""
        weights, state = self.weights.load(entry), self.accumulators.init_zero()
        named = addons.NamedTensors.from_dict({**weights.to_dict(), **state.to_dict()})
        self.backward.graph.bind(named).call(entry)
        self.weights.update(weights, state.accum, entry)


def build_program(ir: popxl.Ir, streams: tuple) -> dict[str, Weights]:
    """One step of training: embedding, layers up, head, layers down, embedding.

    Args:
        streams: of token ids, labels and losses.

    Returns:
        The weights of each part.
    """
    ids_stream, label_stream, loss_stream = streams
    vectors = popxl.TensorSpec((BATCH * SEQ, HIDDEN), FLOATS)
    xs, dxs = (create_remote_buffer(vectors, MICRO_BATCHES * (LAYERS + 1)) for _ in range(2))
    embedding = Phase(Embedding(), ids_stream.spec, 1, ids_stream, xs, dxs)
    layers = Phase(Block(), vectors, LAYERS, None, xs, dxs)
    factories, head = HeadWithGradient().create_graph(vectors, label_stream.spec)
    (x, labels), (loss, dx) = head.graph.inputs[:2], head.graph.outputs
    loads, losses = {x: (xs, 0), labels: label_stream}, {loss: loss_stream}
    serial = addons.batch_serialise(
        head, MICRO_BATCHES, loads, losses, {dx: (dxs, 0)}, rows=LAYERS + 1, io_mode="compute"
    )
    head_weights = Weights(factories.fwd, 1)

    def up(n: popxl.Tensor) -> popxl.Tensor:
        layers.run_forward(n)
        return n + 1

    def down(n: popxl.Tensor) -> popxl.Tensor:
        layers.run_backward(n)
        return n - 1

    first, last = popxl.constant(0, INTS), popxl.constant(LAYERS - 1, INTS)
    embedding.run_forward(first)
    ops.repeat(ir.create_graph(up, first), LAYERS, first)
    weights, state = head_weights.load(first), factories.bwd.init_zero()
    serial.graph.bind(addons.NamedTensors(fwd=weights, bwd=state)).call(LAYERS)
    head_weights.update(weights, state.accum, first)
    ops.repeat(ir.create_graph(down, last), LAYERS, last)
    embedding.run_backward(first)
    return {"embedding": embedding.weights, "layers": layers.weights, "head": head_weights}


def torch_loss(w: dict[str, torch.Tensor], ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """The mean loss of all micro-batches, by plain PyTorch."""
    functional = torch.nn.functional
    x = functional.embedding(torch.tensor(ids).view(-1, SEQ), w["embedding.0.weight"])
    for n in range(LAYERS):
        part = {k.removeprefix(f"layers.{n}."): t for k, t in w.items()}
        h = functional.layer_norm(x, (HIDDEN,), part["ln.weight"], part["ln.bias"])
        q, k, v = (
            t.view(*t.shape[:2], HEADS, -1).transpose(1, 2)
            for t in (h @ part["qkv.weight"]).split(HIDDEN, -1)
        )
        attended = functional.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        out = attended.transpose(1, 2).flatten(2) @ part["out.weight"]
        up = functional.gelu(h @ part["up.weight"] + part["up.bias"], approximate="tanh")
        x = x + out + up @ part["down.weight"] + part["down.bias"]
    x = functional.layer_norm(x, (HIDDEN,), w["head.0.ln.weight"], w["head.0.ln.bias"])
    logits = x @ w["head.0.lm.weight"] + w["head.0.lm.bias"]
    return functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten().long())


def turn(t: torch.Tensor) -> torch.Tensor:
    """Rotary positions of (batch, heads, seq, head_dim)."""
    angle = torch.outer(torch.arange(SEQ), 10000 ** (-torch.arange(0, ROTARY, 2) / ROTARY))
    even, odd, rest = t[..., 0:ROTARY:2], t[..., 1:ROTARY:2], t[..., ROTARY:]
    sin, cos = angle.sin(), angle.cos()
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return torch.cat([turned.flatten(-2), rest], -1)


def sequences(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that count up from a random one, and the token after each, (micro-batches, tokens)."""
    start = rng.integers(0, VOCAB, (MICRO_BATCHES, BATCH, 1))
    tokens = ((start + np.arange(SEQ + 1)) % VOCAB).astype("int32")
    inputs, labels = tokens[..., :-1], tokens[..., 1:]
    return inputs.reshape(MICRO_BATCHES, -1), labels.reshape(MICRO_BATCHES, -1)


def random_weights(
    variables: dict[str, popxl.tensor.Variable], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Weights to start from."""
    return {
        name: (0.3 * rng.normal(size=v.shape) + name.endswith("ln.weight")).astype("float32")
        for name, v in variables.items()
    }


def main() -> None:
    """The losses of twelve steps, which fall and equal PyTorch's."""
    ir = popxl.Ir()
    ir.num_host_transfers = MICRO_BATCHES
    with ir.main_graph, popxl.in_sequence():
        streams = (
            popxl.h2d_stream((BATCH * SEQ,), INTS, "ids"),
            popxl.h2d_stream((BATCH * SEQ,), INTS, "labels"),
            popxl.d2h_stream((), FLOATS, "loss"),
        )
        parts = build_program(ir, streams)
    variables = {
        f"{part}.{n}.{name}": variable
        for part, weights in parts.items()
        for n, entry in enumerate(weights.variables)
        for name, variable in entry.to_dict().items()
    }
    rng = np.random.default_rng(0)
    start = random_weights(variables, rng)
    reference = {name: torch.tensor(a, requires_grad=True) for name, a in start.items()}
    adam = torch.optim.AdamW(
        reference.values(), ADAM["lr"], (ADAM["beta1"], ADAM["beta2"]), ADAM["eps"],
        ADAM["weight_decay"],
    )  # fmt: skip
    with popxl.Session(ir, "ipu_hw") as session:
        session.write_variables_data({v: start[name] for name, v in variables.items()})
        for step in range(STEPS):
            ids, labels = sequences(rng)
            loss = session.run({streams[0]: ids, streams[1]: labels})[streams[2]].mean()
            adam.zero_grad()
            expected = torch_loss(reference, ids, labels)
            expected.backward()
            adam.step()
            np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
            if step in (0, STEPS - 1):
                print(f"step {step}: loss {loss:.4f}, PyTorch {expected.item():.4f}")
    for name, variable in variables.items():
        found = session.get_tensor_data(variable)
        np.testing.assert_allclose(found, reference[name].detach(), rtol=1e-2, atol=1e-3)


if __name__ == "__main__":
    main()
