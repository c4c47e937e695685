"""Remote variables: several tensors in one buffer, of which a program holds one at a time."""

import numpy as np
import popxl
from popxl import ops

ENTRIES, SHAPE = 3, (2, 2)


def main() -> None:
    """Scales each entry of a buffer in a loop, then reads the variables from the host."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer(SHAPE, popxl.float32, entries=ENTRIES)
        # A remote variable is a name for an entry: the host reads and writes the entry by it.
        variables = [
            popxl.remote_variable(
                np.full(SHAPE, entry + 1.0, "float32"), buffer, entry, name=f"w{entry}"
            )
            for entry in range(ENTRIES)
        ]

        def scale(entry: popxl.Tensor, factor: popxl.Tensor) -> popxl.Tensor:
            """Load an entry, change it, put it back; returns the next entry's number."""
            t = ops.remote_load(buffer, entry)
            ops.remote_store(buffer, entry, t * factor)
            return entry + 1

        factor_stream = popxl.h2d_stream((), popxl.float32, "factor")
        first, factor = popxl.constant(0, popxl.int32), ops.host_load(factor_stream)
        ops.repeat(ir.create_graph(scale, first, factor), ENTRIES, first, factor)

    with popxl.Session(ir, "ipu_hw") as session:
        session.write_variable_data(variables[2], np.zeros(SHAPE, "float32"))
        for _ in range(2):
            session.run({factor_stream: np.float32(10)})
    for variable, expected in zip(variables, (100, 200, 0), strict=True):
        value = session.get_tensor_data(variable)
        np.testing.assert_array_equal(value, np.full(SHAPE, expected))
        print(variable.name, value.tolist())


if __name__ == "__main__":
    main()
