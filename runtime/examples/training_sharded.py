"""Training on four replicas that share the weights' and the optimiser's memory.

Each replica holds a quarter of every weight and of Adam's moments (replicated tensor sharding). A
step gathers the weights, reduces and scatters the gradients, and updates the shards.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.optimizers import AdamOptimizerStep
from popxl_addons.remote import load_remote, store_remote
from popxl_addons.rts import all_gather_replica_sharded_graph, reduce_replica_sharded_graph

REPLICAS, BATCH, STEPS = 4, 16, 60
PIXELS, CLASSES, HIDDEN = 64, 4, 32


def pictures(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """(*shape, PIXELS) pictures with one bright quarter and noise, and which quarter it is."""
    labels = rng.integers(0, CLASSES, shape)
    bright = np.repeat(np.eye(CLASSES)[labels], PIXELS // CLASSES, axis=-1)
    images = bright + rng.normal(size=bright.shape)
    return images.astype("float32"), labels.astype("int32")


class Net(addons.Module):
    """Two layers and the loss."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.first = rng.normal(size=(PIXELS, HIDDEN)).astype("float32") / PIXELS**0.5
        self.second = rng.normal(size=(HIDDEN, CLASSES)).astype("float32") / HIDDEN**0.5

    def build(self, x: popxl.Tensor, labels: popxl.Tensor) -> popxl.Tensor:
        """The mean loss of a batch."""
        first = self.add_variable_input("first", lambda: self.first)
        second = self.add_variable_input("second", lambda: self.second)
        return ops.nll_loss(ops.softmax(ops.relu(x @ first) @ second, -1), labels)


def update(weights: addons.NamedTensors, grads: addons.NamedTensors) -> None:
    """One step of Adam on shards; its moments are sharded remote variables, too."""
    for name, weight in weights.to_dict().items():
        factories, step = AdamOptimizerStep().create_graph(
            weight, grads[name], lr=0.02, weight_decay=0.0, first_order_dtype=popxl.float32
        )
        buffers = addons.named_variable_buffers(factories, shard_over_dict=False)
        factories.init_remote(buffers, prefix=name)
        state = load_remote(buffers)
        step.bind(state).call(weight, grads[name])
        store_remote(buffers, state)


def main() -> None:
    """Trains, and counts the right answers on new pictures."""
    ir = popxl.Ir(replication=REPLICAS)
    with ir.main_graph, popxl.in_sequence():
        x_stream = popxl.h2d_stream((BATCH, PIXELS), popxl.float32, "x")
        label_stream = popxl.h2d_stream((BATCH,), popxl.int32, "labels")
        loss_stream = popxl.d2h_stream((), popxl.float32, "loss")
        factories, net = Net().create_graph(x_stream.spec, label_stream.spec)
        grad = addons.autodiff(net, grads_required=list(net.args.to_dict().values()))
        buffers = addons.named_variable_buffers(factories)  # sharded over all replicas
        variables = factories.init_remote(buffers)

        shards = load_remote(buffers)
        gather, names = all_gather_replica_sharded_graph(shards)
        whole = addons.NamedTensors.pack(names, gather.bind(shards).call())
        inputs = ops.host_load(x_stream), ops.host_load(label_stream)
        call = net.bind(whole).call_with_info(*inputs)
        ops.host_store(loss_stream, call.outputs[0])
        grads = grad.call(1.0, args=grad.grad_graph_info.inputs_dict(call))
        named = addons.NamedTensors.pack(net.args.to_dict(), grads)
        reduce, names = reduce_replica_sharded_graph(named, "mean")
        update(shards, addons.NamedTensors.pack(names, reduce.bind(named).call()))
        store_remote(buffers, shards)
    print({name: (t.shape, t.meta_shape) for name, t in shards.to_dict().items()})

    rng = np.random.default_rng(2)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(STEPS):
            images, labels = pictures(rng, REPLICAS, BATCH)
            losses = session.run({x_stream: images, label_stream: labels})[loss_stream]
    first, second = (session.get_tensor_data(variables[name]) for name in ("first", "second"))
    images, labels = pictures(rng, 1000)
    right = ((np.maximum(images @ first, 0) @ second).argmax(-1) == labels).mean()
    assert right > 0.95, f"only {right:.1%} right"
    print(f"loss: {losses.mean():.3f}, right: {right:.1%}")


if __name__ == "__main__":
    main()
