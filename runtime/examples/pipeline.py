"""A pipeline: while one stage works on a micro-batch, the stage before works on the next one.

Two layers on two IPUs, forward and backward, are four stages. The backward stages need what the
forward stages made a few cycles ago, so that is stashed and restored.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

WIDTH, ROWS, STEPS = 4, 2, 10


class Layer(addons.Module):
    """tanh(x w)."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = weight

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer to x, (rows, width)."""
        return ops.tanh(x @ self.add_variable_input("w", lambda: self.weight))


def gradients(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Gradients of the sum of all results by both weights, by numpy."""
    h = np.tanh(x @ first)
    y = np.tanh(h @ second)
    dy = 1 - y**2
    dh = dy @ second.T * (1 - h**2)
    return [np.einsum("sri,srj->ij", x, dh), np.einsum("sri,srj->ij", h, dy)]


def main() -> None:
    """Accumulates the gradients of ten micro-batches in one run."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, WIDTH, WIDTH)).astype("float32")
    ir = popxl.Ir()
    ir.num_host_transfers = STEPS
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((ROWS, WIDTH), popxl.float32, "x")
        forwards, backwards, infos, means = [], [], [], []
        for weight in weights:
            factories, graph = Layer(weight).create_graph(stream.spec)
            accumulators, grad = addons.autodiff_with_accumulation(
                graph, graph.args.tensors, grads_required=graph.graph.inputs[:1]
            )
            means.append(accumulators.init())
            forwards.append(graph.bind(factories.init()))
            backwards.append(grad.bind(means[-1]))
            infos.append(grad.grad_graph_info)

        with addons.pipelined_execution(STEPS) as pipeline:
            with pipeline.stage(0), popxl.ipu(0):
                first = forwards[0].call_with_info(ops.host_load(stream))
                h = first.outputs[0].copy_to_ipu(1)
            with pipeline.stage(1), popxl.ipu(1):
                second = forwards[1].call_with_info(h)
            with pipeline.stage(2), popxl.ipu(1):
                kept = pipeline.stash_and_restore_activations(second, infos[1])
                ones = ops.init((ROWS, WIDTH), popxl.float32) + 1.0
                (dh,) = backwards[1].call(ones, args=kept)
                dh = dh.copy_to_ipu(0)
            with pipeline.stage(3), popxl.ipu(0):
                kept = pipeline.stash_and_restore_activations(first, infos[0])
                backwards[0].call(dh, args=kept)

    x = rng.normal(size=(STEPS, ROWS, WIDTH)).astype("float32")
    with popxl.Session(ir, "ipu_hw") as session:
        session.run({stream: x})
    for mean, expected in zip(means, gradients(x, *weights), strict=True):
        np.testing.assert_allclose(
            session.get_tensor_data(mean.accum.w), expected / STEPS, rtol=1e-4, atol=1e-5
        )
    print(f"{len(weights)} gradients of {STEPS} micro-batches agree")


if __name__ == "__main__":
    main()
