"""Sub-graphs: build once, call with different weights; a Module makes its own inputs."""

import numpy as np
import popxl
from popxl import ops


class Scale(popxl.Module):
    """``build`` may add graph inputs; callers bind them by name of the attribute."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """``x`` times a weight for each column."""
        self.weight = popxl.graph_input((x.shape[-1],), x.dtype, "weight")
        return x * self.weight


def dense(x: popxl.Tensor, w: popxl.Tensor, relu: bool) -> popxl.Tensor:
    """Tensors become graph inputs, everything else is fixed when the graph is made."""
    y = x @ w
    return ops.relu(y) if relu else y


def main() -> None:
    """Two layers from one graph, then a scale."""
    rng = np.random.default_rng(0)
    x, w1, w2 = (rng.normal(size=(4, 4)).astype("float32") for _ in range(3))
    ir = popxl.Ir()
    with ir.main_graph:
        t = popxl.variable(x, name="x")
        first, second = popxl.variable(w1, name="w1"), popxl.variable(w2, name="w2")
        graph = ir.create_graph(dense, t, first, relu=True)
        (h,) = ops.call(graph, t, first)  # a tuple, also of one output
        (h,) = ops.call(graph, h, second)
        module = Scale()
        scale = ir.create_graph(module, h)
        column = popxl.constant(np.arange(4, dtype="float32"))
        (y,) = ops.call(scale, h, inputs_dict={module.weight: column})
        out = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(out, y)
    with popxl.Session(ir) as session:
        result = session.run()[out]
    expected = np.maximum(np.maximum(x @ w1, 0) @ w2, 0) * np.arange(4)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    print(result)


if __name__ == "__main__":
    main()
