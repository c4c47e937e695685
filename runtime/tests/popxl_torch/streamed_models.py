"""Programs that load weights of files, for tests of where these are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import popxl
from popxl import ops

SIDE = 64
LAYERS = 6
SLAB = 2 * SIDE * SIDE * 4


def write_weights(path: Path, rng: np.random.Generator) -> Path:
    """Two matrices for each layer, one slab behind the other; then a table of rows."""
    weights = rng.normal(size=(2 * LAYERS + 1, SIDE, SIDE)) / np.sqrt(SIDE)
    path.write_bytes(weights.astype("float32").tobytes())
    return path


class Model:
    """h -> w[n, 1] @ tanh(w[n, 0] @ h) for all layers, some of which keep what they load."""

    def __init__(self, path: Path, keep: int = 0, **options: object) -> None:
        ir = popxl.Ir()
        for name, value in options.items():
            ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = str(value)
        with ir.main_graph, popxl.in_sequence():
            buffers = [popxl.remote_buffer((SIDE, SIDE), popxl.float32, LAYERS) for _ in range(2)]
            table = popxl.remote_buffer((SIDE, SIDE), popxl.float32, 1)
            empty = np.broadcast_to(np.float32(0), (SIDE, SIDE))
            empty.flags.writeable = False
            self.weights = [
                popxl.remote_variable(empty, buffer, n) for n in range(LAYERS) for buffer in buffers
            ]
            self.weights.append(popxl.remote_variable(empty, table, 0))
            self.source = popxl.h2d_stream((3,), popxl.int32)
            self.target = popxl.d2h_stream((SIDE, 3), popxl.float32)

            def layer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
                first, second = (ops.remote_load(buffer, n) for buffer in buffers)
                return second @ ops.tanh(first @ h), n + 1

            with popxl.name_scope("table"):
                rows = ops.gather(ops.remote_load(table, 0), ops.host_load(self.source), axis=0)
                h = ops.transpose(rows)
            with popxl.name_scope("kept"):
                # Loaded at the start, used at the end: it outlives many iterations.
                kept = [ops.remote_load(buffers[0], n) for n in range(keep)]
            with popxl.name_scope("layers"):
                n = popxl.constant(0, popxl.int32)
                h, _ = ops.repeat(ir.create_graph(layer, h, n), LAYERS, h, n)
            for matrix in kept:
                h = ops.tanh(matrix @ h)
            ops.host_store(self.target, h)
        self.session = popxl.Session(ir, "ipu_hw")
        mapped = np.memmap(path, "float32", "r", shape=(2 * LAYERS + 1, SIDE, SIDE))
        arrays = [np.asarray(mapped[n]) for n in range(2 * LAYERS + 1)]
        for array in arrays:
            array.flags.writeable = False
        # As applications keep them: [out, in] in the file.
        written = [a.T for a in arrays[:-1]] + arrays[-1:]
        self.session.write_variables_data(dict(zip(self.weights, written, strict=True)))

    def run(self, seed: int = 0) -> np.ndarray:
        rows = np.random.default_rng(seed).integers(0, SIDE, 3).astype("int32")
        return self.session.run({self.source: rows})[self.target]

    @property
    def streamer(self):
        return self.session._engine.memory.remote.streamer


def random_loads(path: Path, seed: int, **options: object) -> list[np.ndarray]:
    """Loads in any order, of any entries, together or not, used at once or much later."""
    rng = np.random.default_rng(seed)
    ir = popxl.Ir()
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = str(value)
    mapped = np.asarray(np.memmap(path, "float32", "r", shape=(2 * LAYERS, SIDE, SIDE)))
    with ir.main_graph, popxl.in_sequence():
        counts = (3, 1, 5, 3)
        buffers = [popxl.remote_buffer((SIDE, SIDE), popxl.float32, n) for n in counts]
        weights = {}
        for buffer, count in zip(buffers, counts, strict=True):
            for entry in range(count):
                array = mapped[len(weights)]
                weights[popxl.remote_variable(array, buffer, entry)] = array
        pool = [ops.host_load(source := popxl.h2d_stream((SIDE, SIDE), popxl.float32))]
        for _ in range(12):
            together = rng.permutation(len(buffers))[: rng.integers(1, 4)]
            entry = rng.integers(0, min(counts[n] for n in together))
            offset = popxl.constant(entry, popxl.int32)
            pool += [ops.remote_load(buffers[n], offset) for n in together]
            a, b = (pool[n] for n in rng.integers(0, len(pool), 2))
            pool.append(ops.tanh(a @ b))
        ops.host_store(target := popxl.d2h_stream((SIDE, SIDE), popxl.float32), sum(pool[-6:]))
    session = popxl.Session(ir, "ipu_hw")
    session.write_variables_data(weights)
    x = rng.normal(size=(3, SIDE, SIDE)).astype("float32")
    with session:
        return [session.run({source: row})[target] for row in x]
