"""An MLP cut over four replicas: columns of the first matrix, rows of the second, one reduction.

``groups`` says who communicates; its transpose says whose weights differ.
"""

import numpy as np
import popxl
from popxl import ops

REPLICAS, ROWS, HIDDEN, INNER = 4, 3, 8, 32


def main() -> None:
    """relu(x @ a) @ b, with a and b cut four ways."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, HIDDEN)).astype("float32")
    a = rng.normal(size=(HIDDEN, INNER)).astype("float32")
    b = rng.normal(size=(INNER, HIDDEN)).astype("float32")
    ir = popxl.Ir(replication=REPLICAS)
    groups = ir.replica_grouping(stride=1, group_size=REPLICAS)
    each = groups.transpose()
    with ir.main_graph, popxl.in_sequence():
        # The host array has one slice for each group, the tensor in the program has none.
        columns = popxl.variable(np.stack(np.split(a, REPLICAS, axis=1)), replica_grouping=each)
        rows = popxl.variable(np.stack(np.split(b, REPLICAS, axis=0)), replica_grouping=each)
        assert columns.shape == (HIDDEN, INNER // REPLICAS)
        stream = popxl.h2d_stream(x.shape, popxl.float32)
        partial = ops.relu(ops.host_load(stream) @ columns) @ rows
        y = ops.collectives.replicated_all_reduce(partial, group=groups)
        out = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(out, y)
    with popxl.Session(ir, "ipu_hw") as session:
        result = session.run({stream: np.broadcast_to(x, (REPLICAS, *x.shape))})[out]
    for replica in result:
        np.testing.assert_allclose(replica, np.maximum(x @ a, 0) @ b, rtol=1e-4, atol=1e-4)
    print(result[0])


if __name__ == "__main__":
    main()
