"""Weights from a torch model, by the mappings that the layers bring along."""

import numpy as np
import popxl
import popxl_addons as addons
import torch
from popxl import ops
from popxl_addons.layers import Conv2D, Linear


class Net(addons.Module):
    """A convolution, a pool, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2D(4, 3, paddings=(1, 1, 1, 1))
        self.head = Linear(5)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """(n, 2, h, w) -> (n, 5)."""
        y = ops.average_pool(ops.relu(self.conv(x)), (2, 2), stride=(2, 2))
        return self.head(y.reshape((y.shape[0], -1)))


def main() -> None:
    """The same numbers as torch."""
    torch.manual_seed(0)
    conv, head = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Linear(4 * 3 * 3, 5)
    images = torch.randn(2, 2, 6, 6)
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream(tuple(images.shape), popxl.float32)
        x = ops.host_load(stream)
        facts, graph = Net().create_graph(x)
        variables = facts.init()
        (y,) = graph.bind(variables).call(x)
        out = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(out, y)
    session = popxl.Session(ir)
    session.write_variables_data(
        {
            **Conv2D.torch_mapping(variables.conv, conv),
            **Linear.torch_mapping(variables.head, head),
        }
    )
    with session:
        found = session.run({stream: images})[out]
    with torch.no_grad():
        pooled = torch.nn.functional.avg_pool2d(conv(images).relu(), 2)
        expected = head(pooled.flatten(1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    print(found)


if __name__ == "__main__":
    main()
