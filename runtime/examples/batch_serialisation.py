"""Batch serialisation: a graph and its gradient run for several micro-batches, one after the other.

Activations wait in remote memory between the forward and the backward loop, so that the program
never holds those of more than one micro-batch.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

WIDTH, ROWS, STEPS = 4, 2, 5


class Layer(addons.Module):
    """tanh(x w)."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer to x, (rows, width)."""
        w = self.add_variable_input("w", lambda: np.eye(WIDTH, dtype="float32"))
        return ops.tanh(x @ w)


def main() -> None:
    """The mean gradient of five micro-batches."""
    ir = popxl.Ir()
    ir.num_host_transfers = STEPS  # the loop takes a micro-batch from each stream per step
    with ir.main_graph, popxl.in_sequence():
        x_stream = popxl.h2d_stream((ROWS, WIDTH), popxl.float32, "x")
        dy_stream = popxl.h2d_stream((ROWS, WIDTH), popxl.float32, "dy")
        y_stream = popxl.d2h_stream((ROWS, WIDTH), popxl.float32, "y")

        factories, graph = Layer().create_graph(x_stream.spec)
        accumulators, grad = addons.autodiff_with_accumulation(graph, graph.args.tensors)
        x, y, dy = graph.graph.inputs[0], graph.graph.outputs[0], grad.graph.inputs[0]
        forward, backward = addons.batch_serialise_fwd_and_grad(
            graph,
            grad,
            graph.args,  # weights are passed to the backward loop, not kept for each step
            STEPS,
            load_handles={x: x_stream, dy: dy_stream},
            store_streams={y: y_stream},
            store_buffers={},
            io_mode="compute",
        )
        kept = sorted(t.name for t in forward.stored_buffers)

        weights, state = factories.init(), accumulators.init()
        forward.graph.bind(weights).call(0)
        named = addons.NamedTensors(w=weights.w, accum=state.accum)
        named.insert("mean_accum_counter", state.mean_accum_counter)
        backward.graph.bind(named).call(0)

    rng = np.random.default_rng(0)
    data, upstream = rng.normal(size=(2, STEPS, ROWS, WIDTH)).astype("float32")
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run({x_stream: data, dy_stream: upstream})[y_stream]
    np.testing.assert_allclose(results, np.tanh(data), rtol=1e-5)
    expected = np.einsum("sri,srj->ij", data, upstream * (1 - results**2)) / STEPS
    mean = session.get_tensor_data(state.accum.w)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)
    print(f"kept for each micro-batch: {kept}; mean gradient:\n{mean}")


if __name__ == "__main__":
    main()
