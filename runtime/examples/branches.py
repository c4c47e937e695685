"""A conditional picks a graph at run time: here the kind of run that the host asks for."""

import numpy as np
import popxl
from popxl import ops


def main() -> None:
    """Kind 0 stores a state in remote memory, kind 1 uses it. Only the branch taken acts."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        kind_stream = popxl.h2d_stream((), popxl.int32, "kind")
        x_stream = popxl.h2d_stream((4,), popxl.float32, "x")
        kind, x = ops.host_load(kind_stream), ops.host_load(x_stream)
        state = popxl.remote_buffer((4,), popxl.float32)

        def remember(t: popxl.Tensor) -> popxl.Tensor:
            ops.remote_store(state, 0, t)
            return t * 0.0

        def compare(t: popxl.Tensor) -> popxl.Tensor:
            return t - ops.remote_load(state, 0)

        y, *_ = ops.conditional(
            ops.equal(kind, popxl.constant(0, popxl.int32)),
            ir.create_graph(remember, x),
            ir.create_graph(compare, x),
            then_inputs=[x],
            else_inputs=[x],
        )
        out = popxl.d2h_stream((4,), popxl.float32)
        ops.host_store(out, y)
    rng = np.random.default_rng(0)
    kept, other = rng.normal(size=(2, 4)).astype("float32")
    with popxl.Session(ir) as session:
        assert not session.run({kind_stream: 0, x_stream: kept})[out].any()
        difference = session.run({kind_stream: 1, x_stream: other})[out]
    np.testing.assert_array_equal(difference, other - kept)
    print("difference:", difference)


if __name__ == "__main__":
    main()
