"""Phases: load the weights of a part of the model, run it, keep the activations, go on.

A phase is a compute graph, remote buffers for its weights, and a call per layer. Activations that
a later phase needs are stored to remote memory, too.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import Linear
from popxl_addons.remote import NamedRemoteBuffers, create_remote_buffer

LAYERS, ROWS, WIDTH = 3, 2, 6


class Layer(addons.Module):
    """One layer: sub-modules register their variables by attribute name."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Linear(WIDTH)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """``x + relu(dense(x))``."""
        return x + ops.relu(self.dense(x))


def make_session() -> addons.TaskSession:
    """Phase 1 runs the layers and keeps each result; phase 2 sums the kept results."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        inputs = addons.InputStreams(x=((ROWS, WIDTH), popxl.float32))
        outputs = addons.OutputStreams(y=((ROWS, WIDTH), popxl.float32))
        x = ops.host_load(inputs.x)

        facts, graph = Layer().create_graph(x)
        weights = addons.named_variable_buffers(facts, entries=LAYERS, shard_over_dict=False)
        state = addons.NamedTensors()
        for i in range(LAYERS):  # empty: nothing is drawn, as a checkpoint overwrites it
            state.insert(i, facts.init_remote(weights, i, f"layer.{i}", empty=True))
        kept = NamedRemoteBuffers(x=create_remote_buffer(x.spec, entries=LAYERS))

        def run_layer(x: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            load, names = addons.load_remote_graph(weights, LAYERS)
            (x,) = graph.bind(addons.NamedTensors.pack(names, load.call(i))).call(x)
            store = addons.store_remote_graph(kept, LAYERS)
            store.bind(addons.NamedTensors(x=x)).call(i)
            return x, i + 1

        def add_kept(total: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            load, _ = addons.load_remote_graph(kept, LAYERS)
            (x,) = load.call(i)
            return total + x, i + 1

        zero = popxl.constant(0, popxl.int32)
        ops.repeat(ir.create_graph(run_layer, x, zero), LAYERS, x, zero)
        total, _ = ops.repeat(ir.create_graph(add_kept, x, zero), LAYERS, x * 0.0, zero)
        ops.host_store(outputs.y, total)

    return addons.TaskSession(inputs, outputs, state, ir=ir, device_desc="ipu_hw")


def main() -> None:
    """Writes weights, runs, compares with NumPy."""
    session = make_session()
    state = session.state
    rng = np.random.default_rng(0)
    w = rng.normal(size=(LAYERS, WIDTH, WIDTH)).astype("float32")
    b = rng.normal(size=(LAYERS, WIDTH)).astype("float32")
    session.write_variables_data(
        {state[f"{i}.dense.weight"]: w[i] for i in range(LAYERS)}
        | {state[f"{i}.dense.bias"]: b[i] for i in range(LAYERS)}
    )
    x0 = rng.normal(size=(ROWS, WIDTH)).astype("float32")
    with session:
        result = session.run({session.inputs.x: x0})[session.outputs.y]
    expected, h = np.zeros_like(x0), x0
    for i in range(LAYERS):
        h = h + np.maximum(h @ w[i] + b[i], 0)
        expected += h
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    print(result)


if __name__ == "__main__":
    main()
