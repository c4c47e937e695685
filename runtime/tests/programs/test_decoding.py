"""A LLaMA-like decoder with keys and values in remote memory, cut over replicas.

One program prefills or decodes, as the host asks; the branches share weights and caches.
"""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
import pytest
import torch
from popxl import ops
from popxl_addons.layers import Linear

LAYERS, BATCH, LENGTH, PREFIX, HIDDEN, HEADS = 2, 2, 6, 3, 16, 4
DIM = HIDDEN // HEADS
TOLERANCE = {"single": {"rtol": 1e-4, "atol": 1e-5}, "half": {"rtol": 3e-2, "atol": 3e-2}}


class Layer(addons.Module):
    """RMS norm, attention over cached keys and values, gated MLP."""

    def __init__(self, tp: popxl.ReplicaGrouping, caches: tuple[popxl.RemoteBuffer, ...]) -> None:
        super().__init__()
        self.tp, self.caches = tp, caches
        each = tp.transpose()
        self.heads = HEADS // tp.group_size
        self.qkv = Linear(3 * self.heads * DIM, bias=False, replica_grouping=each)
        self.out = Linear(HIDDEN, bias=False, replica_grouping=each)
        self.gate, self.up = (
            Linear(2 * HIDDEN // tp.group_size, bias=False, replica_grouping=each) for _ in "gu"
        )
        self.down = Linear(HIDDEN, bias=False, replica_grouping=each)

    def _norm(self, x: popxl.Tensor, name: str) -> popxl.Tensor:
        scale = self.add_variable_input(name, lambda: np.ones(HIDDEN), x.dtype)
        wide = ops.cast(x, popxl.float32)
        square = ops.mean(wide * wide, axis=-1, keepdims=True)
        return ops.cast(wide / ops.sqrt(square + 1e-6), x.dtype) * scale

    def _cached(self, cache: popxl.RemoteBuffer, layer: popxl.Tensor, place: popxl.Tensor,
                new: popxl.Tensor) -> popxl.Tensor:  # fmt: skip
        kept = ops.remote_load(cache, layer)
        sizes = [new.shape[2]]
        kept = ops.dynamic_update_(kept, place, new, axes=[2], sizes=sizes, no_overlap=True)
        ops.remote_store(cache, layer, kept)
        return kept

    def build(self, x: popxl.Tensor, layer: popxl.Tensor, place: popxl.Tensor) -> popxl.Tensor:
        """(batch * rows, hidden) at ``place``, in layer number ``layer``."""
        rows = x.shape[0] // BATCH
        q, k, v = (
            t.reshape((BATCH, rows, self.heads, DIM)).transpose((0, 2, 1, 3))
            for t in ops.split(self.qkv(self._norm(x, "norm_1")), 3, axis=1)
        )
        k, v = (self._cached(c, layer, place, t) for c, t in zip(self.caches, (k, v), strict=True))
        scores = (q @ k.transpose((0, 1, 3, 2))) * DIM**-0.5
        now = popxl.constant(np.arange(rows).reshape(rows, 1), popxl.int32) + place
        later = ops.greater(popxl.constant(np.arange(LENGTH), popxl.int32), now)
        scores = ops.where(later, popxl.constant(-1e4, x.dtype), scores)
        y = (ops.softmax(scores, axis=-1) @ v).transpose((0, 2, 1, 3))
        y = self.out(y.reshape((BATCH * rows, self.heads * DIM)))
        x = x + ops.collectives.replicated_all_reduce(y, group=self.tp)
        h = self._norm(x, "norm_2")
        y = self.down(ops.swish(self.gate(h)) * self.up(h))
        return x + ops.collectives.replicated_all_reduce(y, group=self.tp)


def _session(tp: int, dtype: popxl.dtype) -> addons.TaskSession:
    ir = popxl.Ir(replication=tp)
    with ir.main_graph, popxl.in_sequence():
        group = ir.replica_grouping(stride=1, group_size=tp)
        inputs = addons.InputStreams(
            prefix=((BATCH * PREFIX, HIDDEN), dtype),
            token=((BATCH, HIDDEN), dtype),
            place=((1,), popxl.int32),
        )
        prefix, token, place = (ops.host_load(stream) for stream in inputs)
        shape = (BATCH, HEADS // tp, LENGTH, DIM)
        caches = tuple(popxl.remote_buffer(shape, dtype, LAYERS) for _ in "kv")
        zero = popxl.constant(0, popxl.int32)
        state = addons.NamedTensors()
        buffers = None

        def phase(x: popxl.Tensor, place: popxl.Tensor) -> popxl.Graph:
            nonlocal buffers
            facts, graph = Layer(group, caches).create_graph(x, zero, place)
            if buffers is None:
                buffers = addons.named_variable_buffers(facts, LAYERS, shard_over_dict=False)
                for i in range(LAYERS):
                    with ir.main_graph:
                        state.insert(i, facts.init_remote(buffers, i, str(i), empty=True))
            loads = buffers

            def step(x: popxl.Tensor, i: popxl.Tensor, place: popxl.Tensor):
                load, names = addons.load_remote_graph(loads, LAYERS)
                weights = addons.NamedTensors.pack(names, load.call(i))
                (x,) = graph.bind(weights).call(x, i, place)
                return x, i + 1

            def last(x: popxl.Tensor, place: popxl.Tensor) -> popxl.Tensor:
                i = popxl.constant(0, popxl.int32)
                rows = x.shape[0] // BATCH
                x, _ = ops.repeat(ir.create_graph(step, x, i, place), LAYERS, x, i, place)
                x = x.reshape((BATCH, rows, HIDDEN))[:, rows - 1 : rows, :]
                return x.reshape((BATCH, HIDDEN))

            return ir.create_graph(last, x, place)

        first = ops.equal(place, popxl.constant([0], popxl.int32))
        branches = phase(prefix, place), phase(token, place)
        (y,) = ops.conditional(first, *branches, [prefix, place], [token, place])
        outputs = addons.OutputStreams(y=((BATCH, HIDDEN), dtype))
        ops.host_store(outputs.y, y)
    return addons.TaskSession(inputs, outputs, state, ir=ir, device_desc="ipu_hw")


SHAPES = {
    "norm_1": (HIDDEN,), "norm_2": (HIDDEN,), "qkv.weight": (HIDDEN, 3 * HIDDEN),
    "out.weight": (HIDDEN, HIDDEN), "gate.weight": (HIDDEN, 2 * HIDDEN),
    "up.weight": (HIDDEN, 2 * HIDDEN), "down.weight": (2 * HIDDEN, HIDDEN),
}  # fmt: skip


def _cut(name: str, whole: np.ndarray, tp: int) -> np.ndarray:
    if tp == 1 or "norm" in name:
        return whole
    if "qkv" in name:
        parts = np.split(whole, 3, axis=-1)
        return np.concatenate([addons.shard(part, tp, -1) for part in parts], axis=-1)
    return addons.shard(whole, tp, 0 if name in ("out.weight", "down.weight") else -1)


def _reference(x: torch.Tensor, weights: list[dict[str, np.ndarray]]) -> torch.Tensor:
    """The whole text at once, (batch, length, hidden)."""
    for layer in weights:
        w = {name: torch.tensor(array) for name, array in layer.items()}
        h = torch.nn.functional.rms_norm(x, (HIDDEN,), w["norm_1"], 1e-6)
        q, k, v = (
            t.reshape(BATCH, -1, HEADS, DIM).transpose(1, 2)
            for t in (h @ w["qkv.weight"]).chunk(3, -1)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).flatten(2) @ w["out.weight"]
        h = torch.nn.functional.rms_norm(x, (HIDDEN,), w["norm_2"], 1e-6)
        gated = torch.nn.functional.silu(h @ w["gate.weight"]) * (h @ w["up.weight"])
        x = x + gated @ w["down.weight"]
    return x


@pytest.mark.parametrize("precision", ["single", "half"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_prefill_and_decode(tp: int, precision: str, rng: np.random.Generator) -> None:
    dtype = popxl.float32 if precision == "single" else popxl.float16
    session = _session(tp, dtype)
    weights = [
        {name: rng.normal(size=shape) * 0.2 for name, shape in SHAPES.items()}
        for _ in range(LAYERS)
    ]
    session.write_variables_data(
        {
            session.state[f"{i}.{name}"]: _cut(name, array, tp).astype(dtype.as_numpy())
            for i, layer in enumerate(weights)
            for name, array in layer.items()
        }
    )
    with session:
        for _ in range(2):  # a second text overwrites the first one's caches
            text = rng.normal(size=(BATCH, LENGTH, HIDDEN))
            expected = _reference(torch.tensor(text), weights).numpy()
            for place in (0, *range(PREFIX, LENGTH)):
                arrays = {
                    session.inputs.prefix: text[:, :PREFIX].reshape(-1, HIDDEN),
                    session.inputs.token: text[:, place],
                    session.inputs.place: np.array([place]),
                }
                found = session.run(
                    {
                        stream: np.broadcast_to(
                            array.astype(stream.dtype.as_numpy()), (tp,) * (tp > 1) + array.shape
                        )
                        for stream, array in arrays.items()
                    }
                )[session.outputs.y]
                wanted = expected[:, PREFIX - 1 if place == 0 else place]
                for replica in found.reshape(tp, BATCH, HIDDEN):
                    np.testing.assert_allclose(replica, wanted, **TOLERANCE[precision])
