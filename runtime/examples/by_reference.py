"""Calls are by value. An input annotated with TensorByRef lets a graph change its caller's tensor.

(The annotation is recognised by identity: do not use ``from __future__ import annotations`` here.)
"""

import numpy as np
import popxl
from popxl import ops


def by_value(t: popxl.Tensor) -> popxl.Tensor:
    """Changes a copy."""
    return ops.add_(t, popxl.constant(100.0))


def step(average: popxl.TensorByRef, count: popxl.TensorByRef, x: popxl.Tensor) -> None:
    """One step of a running mean, kept in the caller's variables."""
    ops.add_(count, popxl.constant(1.0))
    ops.add_(average, (x - average) / count)


def main() -> None:
    """The mean of five inputs, one loop iteration each."""
    ir = popxl.Ir()
    ir.num_host_transfers = 5
    with ir.main_graph, popxl.in_sequence():
        average = popxl.variable(np.zeros(2, "float32"), name="average")
        count = popxl.variable(0.0, name="count")
        stream = popxl.h2d_stream((2,), popxl.float32)

        def body(average: popxl.TensorByRef, count: popxl.TensorByRef) -> None:
            x = ops.host_load(stream)
            ops.call(ir.create_graph(step, average, count, x), average, count, x)

        ops.repeat(ir.create_graph(body, average, count), 5, average, count)
        ops.call(ir.create_graph(by_value, average), average)  # no effect on the variable
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    session = popxl.Session(ir)
    with session:
        session.run({stream: x})
    np.testing.assert_allclose(session.get_tensor_data(average), x.mean(0), rtol=1e-5, atol=1e-6)
    assert session.get_tensor_data(count) == 5
    print("mean:", session.get_tensor_data(average))


if __name__ == "__main__":
    main()
