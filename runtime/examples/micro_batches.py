"""Several micro-batches a run: arrays get a leading axis, and the program loops over it.

``num_host_transfers`` only shapes the arrays. The main graph still runs once, so the loads and
stores are put in a loop of that many iterations.
"""

import numpy as np
import popxl
from popxl import ops

TRANSFERS = 4


def main() -> None:
    """Softmax of each micro-batch, on two replicas."""
    ir = popxl.Ir(replication=2)
    ir.num_host_transfers = TRANSFERS
    with ir.main_graph, popxl.in_sequence():
        inputs = popxl.h2d_stream((3, 5), popxl.float32)
        outputs = popxl.d2h_stream((3, 5), popxl.float32)

        def one() -> None:
            ops.host_store(outputs, ops.softmax(ops.host_load(inputs), axis=-1))

        ops.repeat(ir.create_graph(one), TRANSFERS)
    x = np.random.default_rng(0).normal(size=(TRANSFERS, 2, 3, 5)).astype("float32")
    with popxl.Session(ir, "ipu_hw") as session:
        y = session.run({inputs: x})[outputs]  # (transfers, replicas, *stream shape)
    expected = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    print(y.shape)


if __name__ == "__main__":
    main()
