"""What a plan step costs beside its kernel: Python's share of a run.

A model so small that its kernels cost next to nothing, without loops, so that each step of the plan
is executed once a run. With the null backend, which computes nothing, a run is the executor alone;
with the torch backend on one thread it includes the wrapping of kernels, torch's own dispatch and
the tiny kernels themselves, and so is an upper bound of Python's share.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from benchmarks import machine, record, table
from config.config import MagmaConfig
from config.parsing import load_preset

TARGET_US = 10.0
BACKENDS = {"null": "executor alone (null backend)", "torch": "with tiny kernels (torch)"}


def without_loops() -> MagmaConfig:
    """The preset tiny with no block repeated."""
    config = copy.deepcopy(load_preset("tiny"))
    config.visual.layers = (1, 1, 1, 1)
    config.visual.image_resolution = 32
    config.transformer.layers = 1
    config.transformer.sequence_length = 7
    config.validate()
    return config


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable, for the time of the context."""
    old = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if old is not None:
            os.environ[name] = old


def measure(config: MagmaConfig, backend: str, repeats: int) -> tuple[int, list[float]]:
    """(steps of the plan, microseconds per step of every run)."""
    from execution.weights import load_weights
    from inference import inference, random_inputs
    from modelling.mapping import model_weights
    from utils.random_tensors import RandomTensors

    with tempfile.TemporaryDirectory() as folder, environment("POPXL_TORCH_BACKEND", backend):
        trace = Path(folder) / "trace.json"
        session = inference(config, trace)
        load_weights(session, model_weights(config, RandomTensors(config)))
        inputs = random_inputs(session, config)
        totals = [0.0]
        with session:
            for _ in range(repeats + 3):
                session.run(inputs)
                content = json.loads(trace.read_text())
                totals.append(content["total_ms"])
    steps = content["steps"]
    # The first runs build the plan and warm up.
    runs_ms = [b - a for a, b in pairwise(totals[3:])]
    return steps, [1e3 * ms / steps for ms in runs_ms]


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="runs of each backend")
    options = parser.parse_args()
    before = machine.measure_rates()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = without_loops()
    rows, samples = [], {}
    for backend, label in BACKENDS.items():
        steps, values = measure(config, backend, options.repeats)
        samples[f"{backend}_us_per_step"] = values
        rows.append((label, str(steps), f"{median(values):.2f}", f"{min(values):.2f}"))
    torch.set_num_threads(threads)
    within = median(samples["null_us_per_step"]) <= TARGET_US
    outcome = record.Result(
        bench="bench_plan_overhead",
        title="Cost of a plan step beside its kernel",
        columns=("what", "steps", "µs per step, median", "least"),
        rows=rows,
        samples=samples,
        setting={"config": config.as_dict(), "repeats": options.repeats},
        notes=(
            f"Target: at most {TARGET_US:.0f} µs of Python per step:"
            f" {'met' if within else 'missed'} by the executor alone.",
            "The second row is an upper bound of Python's share: torch's dispatch and the kernels"
            " themselves are in it.",
        ),
    )
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
