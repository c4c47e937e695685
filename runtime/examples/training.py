"""Training with popxl_addons: modules, accumulated gradients, activations computed again, AdamW.

The pictures are made on the spot: a blurred bar at one of ten angles, with noise.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.optimizers import AdamOptimizerStep

PIXELS, CLASSES, HIDDEN = 12, 10, 48
BATCH, MICRO_BATCHES, STEPS = 32, 2, 80


def pictures(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, PIXELS * PIXELS) pictures and their classes."""
    labels = rng.integers(0, CLASSES, count)
    angle = (labels * np.pi / CLASSES)[:, None, None]
    y, x = np.mgrid[:PIXELS, :PIXELS] - (PIXELS - 1) / 2
    distance = x * np.sin(angle) - y * np.cos(angle)
    images = np.exp(-(distance**2)) + 0.7 * rng.normal(size=(count, PIXELS, PIXELS))
    return images.reshape(count, -1).astype("float32"), labels.astype("int32")


class Net(addons.Module):
    """Two layers and the loss."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.first = rng.normal(size=(PIXELS**2, HIDDEN)).astype("float32") / PIXELS
        self.second = rng.normal(size=(HIDDEN, CLASSES)).astype("float32") / HIDDEN**0.5

    def build(self, x: popxl.Tensor, labels: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Loss and logits."""
        first = self.add_variable_input("first", lambda: self.first)
        second = self.add_variable_input("second", lambda: self.second)
        logits = ops.gelu(x @ first) @ second
        return ops.nll_loss(ops.softmax(logits, -1), labels), logits


def predict(images: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The classes that a net with these weights sees, by numpy."""
    x = images @ first
    x = x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return (x @ second).argmax(-1)


def main() -> None:
    """Trains on some pictures and counts the right answers on others."""
    ir = popxl.Ir()
    ir.num_host_transfers = MICRO_BATCHES
    with ir.main_graph, popxl.in_sequence():
        x_stream = popxl.h2d_stream((BATCH, PIXELS**2), popxl.float32, "x")
        label_stream = popxl.h2d_stream((BATCH,), popxl.int32, "labels")
        loss_stream = popxl.d2h_stream((), popxl.float32, "loss")
        x, labels = (
            popxl.TensorSpec(stream.shape, stream.dtype) for stream in (x_stream, label_stream)
        )
        factories, net = Net().create_graph(x, labels)
        accumulators, grads = addons.autodiff_with_accumulation(
            net, net.args.tensors, grads_provided=[net.graph.outputs[0]]
        )
        grads = addons.recompute_graph(grads)
        variables, state = factories.init(), accumulators.init()

        for _ in range(MICRO_BATCHES):
            inputs = ops.host_load(x_stream), ops.host_load(label_stream)
            call = net.bind(variables).call_with_info(*inputs)
            grads.bind(state).call(1.0, args=grads.grad_graph_info.inputs_dict(call))
            ops.host_store(loss_stream, call.outputs[0])
        for name, variable in variables.to_dict().items():
            grad = state.accum[name]
            optimiser, step = AdamOptimizerStep().create_graph(variable, grad, lr=0.01)
            step.bind(optimiser.init()).call(variable, grad)
        ops.var_updates.accumulator_zero_(state.mean_accum_counter)

    rng = np.random.default_rng(2)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(STEPS):
            images, classes = pictures(rng, BATCH * MICRO_BATCHES)
            given = {
                x_stream: images.reshape(MICRO_BATCHES, BATCH, -1),
                label_stream: classes.reshape(MICRO_BATCHES, BATCH),
            }
            losses = session.run(given)[loss_stream]
    images, classes = pictures(rng, 1000)
    first, second = (session.get_tensor_data(variables[name]) for name in ("first", "second"))
    right = (predict(images, first, second) == classes).mean()
    assert right > 0.93, f"only {right:.1%} right"
    print(f"loss: {losses.mean():.3f}, right: {right:.1%}")


if __name__ == "__main__":
    main()
