"""Random numbers are a function of a seed tensor; a seed variable gives each replica its own.

A program that wants other numbers in each run moves its seed on.
"""

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops


def main() -> None:
    """Noise and dropout on two replicas, new in each run."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        _, seed = addons.seed_variable(7)
        for_noise, for_dropout = ops.split_random_seed(seed)
        noise = ops.random_normal(for_noise, (1000,), std=2.0)
        again = ops.random_normal(for_noise, (1000,), std=2.0)
        kept = ops.dropout(noise * 0.0 + 1.0, for_dropout, p=0.25)
        seed += 1
        streams = [popxl.d2h_stream((1000,), popxl.float32) for _ in range(3)]
        for stream, tensor in zip(streams, (noise, again, kept), strict=True):
            ops.host_store(stream, tensor)
    with popxl.Session(ir, "ipu_hw") as session:
        first, second = session.run(), session.run()
    values = first[streams[0]]
    np.testing.assert_array_equal(values, first[streams[1]])  # same seed, same numbers
    assert not np.array_equal(values[0], values[1])  # replicas differ
    assert not np.array_equal(values, second[streams[0]])  # and so do runs
    assert abs(values.mean()) < 0.3
    assert abs(values.std() - 2) < 0.2
    mask = first[streams[2]]
    np.testing.assert_allclose(np.unique(mask), [0, 1 / 0.75], rtol=1e-6)
    assert abs((mask == 0).mean() - 0.25) < 0.05
    print(f"mean {values.mean():.3f}, deviation {values.std():.3f}")


if __name__ == "__main__":
    main()
