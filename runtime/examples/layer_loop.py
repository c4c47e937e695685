"""A loop over layers whose weights lie in remote memory: one graph, one entry per layer.

What the body returns is carried to its inputs by position; the layer number is carried too, as a
loop cannot see its iteration.
"""

import numpy as np
import popxl
from popxl import ops

LAYERS, ROWS, WIDTH = 6, 3, 8


def main() -> None:
    """x -> tanh(x @ w_i) for all layers i."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(LAYERS, WIDTH, WIDTH)).astype("float32")
    x = rng.normal(size=(ROWS, WIDTH)).astype("float32")
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, entries=LAYERS)
        for i, weight in enumerate(weights):
            popxl.remote_variable(weight, buffer, offset=i)

        def layer(h: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            weight = ops.remote_load(buffer, i)
            return ops.tanh(h @ weight), i + 1

        h = popxl.constant(x)
        i = popxl.constant(0, popxl.uint32)
        h, _ = ops.repeat(ir.create_graph(layer, h, i), LAYERS, h, i)
        out = popxl.d2h_stream(h.shape, h.dtype)
        ops.host_store(out, h)
    with popxl.Session(ir) as session:
        result = session.run()[out]
    for weight in weights:
        x = np.tanh(x @ weight)
    np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-5)
    print(result)


if __name__ == "__main__":
    main()
