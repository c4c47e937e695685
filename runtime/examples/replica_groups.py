"""Replica groupings: which replicas share a variable's value, and which add up their results."""

import numpy as np
import popxl
from popxl import ops

REPLICAS = 4


def main() -> None:
    """Two groups of two replicas: each pair shares a weight; partners across pairs are summed."""
    ir = popxl.Ir(replication=REPLICAS)
    with ir.main_graph, popxl.in_sequence():
        everyone = ir.replica_grouping()  # 0 1 2 3
        pairs = ir.replica_grouping(group_size=2)  # 0 1 | 2 3
        partners = pairs.transpose()  # 0 2 | 1 3
        alone = ir.replica_grouping(group_size=1)  # 0 | 1 | 2 | 3
        for name, group in {"everyone": everyone, "pairs": pairs, "partners": partners}.items():
            print(name, group.assignment)

        # A value for each group: the host's array has an axis for them, unless there is one group.
        shared = popxl.variable(1.0, replica_grouping=everyone)
        by_pair = popxl.variable(np.array([10.0, 20.0], "float32"), replica_grouping=pairs)
        own = popxl.variable(np.arange(4, dtype="float32") * 100, replica_grouping=alone)

        total = shared + by_pair + own
        results = {
            "each": total,
            "pair": ops.collectives.replicated_all_reduce(total, "add", pairs),
            "partners": ops.collectives.replicated_all_reduce(total, "add", partners),
            "mean": ops.collectives.replicated_all_reduce(total, "mean", everyone),
        }
        streams = {name: popxl.d2h_stream((), popxl.float32, name) for name in results}
        for name, result in results.items():
            ops.host_store(streams[name], result)

    with popxl.Session(ir, "ipu_hw") as session:
        outputs = session.run()
    each = np.array([11, 111, 221, 321])
    expected = {
        "each": each,
        "pair": [122, 122, 542, 542],
        "partners": [232, 432, 232, 432],
        "mean": [each.mean()] * REPLICAS,
    }
    for name, stream in streams.items():
        np.testing.assert_allclose(outputs[stream], expected[name])
        print(name, outputs[stream])


if __name__ == "__main__":
    main()
