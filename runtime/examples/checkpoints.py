"""A task session names its streams and variables, and saves and loads checkpoints."""

import tempfile
from pathlib import Path

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.layers import LayerNorm, Linear


class Head(addons.Module):
    """Layer norm, then a projection."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """(rows, width) -> (rows, 3)."""
        self.norm, self.dense = LayerNorm(), Linear(3)
        return self.dense(self.norm(x))


def make_session() -> addons.TaskSession:
    """A new program with randomly initialised weights."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        inputs = addons.InputStreams(x=((2, 4), popxl.float32))
        outputs = addons.OutputStreams(y=((2, 3), popxl.float32))
        x = ops.host_load(inputs.x)
        facts, graph = Head().create_graph(x)
        variables = facts.init()
        (y,) = graph.bind(variables).call(x)
        ops.host_store(outputs.y, y)
    return addons.TaskSession(inputs, outputs, variables, ir=ir, device_desc="cpu")


def main() -> None:
    """A second session gives the first one's results once it has loaded its checkpoint."""
    first, second = make_session(), make_session()
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    with first:
        wanted = first.run({first.inputs.x: x})[first.outputs.y]
    with tempfile.TemporaryDirectory() as folder:
        first.save_checkpoint(f"{folder}/step_1")
        files = sorted(path.name for path in Path(folder, "step_1", "model").iterdir())
        assert files[0] == "dense.bias.npz"
        second.load_checkpoint(f"{folder}/step_1", report_missing="error")
    with second:
        found = second.run({second.inputs.x: x})[second.outputs.y]
    np.testing.assert_array_equal(found, wanted)
    assert second.session_state["steps"] == 2
    print(files, found)


if __name__ == "__main__":
    main()
