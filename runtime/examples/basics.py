"""A program: data comes from the host, is computed with, goes back; a variable keeps state.

Building and running are separate. ``with ir.main_graph`` records operations; the session compiles
them and runs them as often as it is asked to.
"""

import numpy as np
import popxl
from popxl import ops


def main() -> None:
    """A running sum of scaled inputs."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x_stream = popxl.h2d_stream((3,), popxl.float32, "x")
        sum_stream = popxl.d2h_stream((3,), popxl.float32, "sum")
        scale = popxl.constant(2.0)
        total = popxl.variable(np.zeros(3, "float32"), name="total")
        total += ops.host_load(x_stream) * scale  # writes the variable
        ops.host_store(sum_stream, total)

    inputs = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    session = popxl.Session(ir, "ipu_hw")
    with session:  # entering sends the variables, leaving fetches them
        for x in inputs:
            outputs = session.run({x_stream: x})

    np.testing.assert_allclose(outputs[sum_stream], 2 * inputs.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(session.get_tensor_data(total), outputs[sum_stream])
    print("sum:", outputs[sum_stream])


if __name__ == "__main__":
    main()
