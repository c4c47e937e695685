"""A weight of which each replica holds a part: gathered to be used, updated in parts."""

import numpy as np
import popxl
from popxl import ops


def main() -> None:
    """Two steps of gradient descent on |x @ w|² / 2, the weight cut over two replicas."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype("float32")
    x = rng.normal(size=(2, 5, 4)).astype("float32")  # each replica has data of its own
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        weight, shard = popxl.replica_sharded_variable(start, name="w")
        assert shard.shape == (6,)
        assert shard.meta_shape == (4, 3)
        stream = popxl.h2d_stream((5, 4), popxl.float32)
        data = ops.host_load(stream)
        whole = ops.collectives.replicated_all_gather(shard)
        grad = data.T @ (data @ whole)
        grad = ops.collectives.replicated_all_reduce(grad, op="mean")
        part = ops.collectives.replica_sharded_slice(grad)
        ops.scaled_add_(shard, part, b=-0.01)
    session = popxl.Session(ir, "ipu_hw")
    with session:
        for _ in range(2):
            session.run({stream: x})
    expected = start
    for _ in range(2):
        expected = expected - 0.01 * np.mean([d.T @ (d @ expected) for d in x], axis=0)
    np.testing.assert_allclose(session.get_tensor_data(weight), expected, rtol=1e-4, atol=1e-5)
    print(session.get_tensor_data(weight))


if __name__ == "__main__":
    main()
