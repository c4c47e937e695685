"""Random chains of stages, built in three forms that have the same results."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.transforms.repeat_graph import repeat_graph

SHAPE = (2, 3)
FUNCTIONS = (ops.tanh, ops.relu, ops.gelu)


class Stages:
    """Layers of which some add what an earlier one made, and all sum what they make."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.count = int(self.rng.integers(1, 5))
        self.steps = 2 * self.count + int(self.rng.integers(0, 3))
        self.functions = self.rng.integers(0, len(FUNCTIONS), self.count)
        self.skips = [int(self.rng.integers(0, s)) if s else None for s in range(self.count)]
        self.weights = self.rng.normal(size=(self.count, 3, 3)).astype("f4")
        self.data = self.rng.normal(size=(self.steps, *SHAPE)).astype("f4")

    def run(self, form: str) -> list[np.ndarray]:
        """Results of two runs, then the sums. Forms: "plain", "pipeline" or "repeat"."""
        ir = popxl.Ir()
        ir.num_host_transfers = self.steps
        with ir.main_graph, popxl.in_sequence():
            self.into = popxl.h2d_stream(SHAPE, popxl.float32)
            self.out = popxl.d2h_stream(SHAPE, popxl.float32)
            self.variables = [popxl.variable(w) for w in self.weights]
            self.sums = [popxl.variable(np.zeros(SHAPE, "f4")) for _ in self.weights]
            if form == "pipeline":
                with addons.pipelined_execution(self.steps) as pipeline:
                    self._chain(pipeline)
            else:
                for _ in range(1 if form == "repeat" else self.steps):
                    self._chain(None)
        if form == "repeat":
            repeat_graph(ir.main_graph, self.steps)
        with popxl.Session(ir, "ipu_hw") as session:
            found = [session.run({self.into: self.data})[self.out] for _ in range(2)]
        return [*found, *(session.get_tensor_data(total) for total in self.sums)]

    def _chain(self, pipeline: addons.transforms.pipelining.StageContext | None) -> None:
        made: list[popxl.Tensor] = []
        for stage in range(self.count):
            if pipeline is None:
                made.append(self._stage(made, None))
            else:
                with pipeline.stage(stage):
                    made.append(self._stage(made, pipeline))

    def _stage(
        self,
        made: list[popxl.Tensor],
        pipeline: addons.transforms.pipelining.StageContext | None,
    ) -> popxl.Tensor:
        stage = len(made)
        x = made[-1] if made else ops.host_load(self.into)
        y = FUNCTIONS[self.functions[stage]](x @ self.variables[stage])
        skip = self.skips[stage]
        if skip is not None:
            earlier = made[skip]
            y = y + (pipeline.stash_and_restore_tensor(earlier) if pipeline else earlier)
        ops.add_(self.sums[stage], y)
        if stage == self.count - 1:
            ops.host_store(self.out, y)
        return y
