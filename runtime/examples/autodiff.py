"""Gradients: autodiff makes a graph, which the program calls with what the forward call kept.

Differentiate first, then call: autodiff adds outputs to the forward graph.
"""

import numpy as np
import popxl
from popxl import ops

RATE = 2.0


def loss(x: popxl.Tensor, labels: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
    """Mean loss of a linear classifier."""
    return ops.nll_loss(ops.softmax(x @ w, axis=-1), labels)


def main() -> None:
    """A linear classifier by gradient descent."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("float32")
    labels = (x @ rng.normal(size=(8, 4))).argmax(-1).astype("int32")

    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x_stream = popxl.h2d_stream(x.shape, popxl.float32, "x")
        label_stream = popxl.h2d_stream(labels.shape, popxl.int32, "labels")
        loss_stream = popxl.d2h_stream((), popxl.float32, "loss")
        w = popxl.variable(np.zeros((8, 4), "float32"), name="w")
        inputs = ops.host_load(x_stream), ops.host_load(label_stream)

        graph = ir.create_graph(loss, *inputs, w)
        gradient = popxl.transforms.autodiff(graph, grads_required=[graph.inputs[2]])
        call = ops.call_with_info(graph, *inputs, w)
        (dw,) = ops.call(gradient.graph, 1.0, inputs_dict=gradient.inputs_dict(call))
        ops.scaled_add_(w, dw, b=-RATE)
        ops.host_store(loss_stream, call.outputs[0])  # more outputs follow

    with popxl.Session(ir, "ipu_hw") as session:
        losses = [
            float(session.run({x_stream: x, label_stream: labels})[loss_stream]) for _ in range(100)
        ]
    np.testing.assert_allclose(losses[0], np.log(4), rtol=1e-5)
    right = (x @ session.get_tensor_data(w)).argmax(-1) == labels
    assert losses[-1] < 0.2 * losses[0]
    assert right.mean() > 0.95
    print(f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}, right: {right.mean():.1%}")


if __name__ == "__main__":
    main()
