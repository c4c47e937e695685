"""What tensor parallelism costs in one process: tp = 4 against tp = 1 on a block of the real size.

A model with one decoder block of MAGMA's widths and as little as possible around it. The time is
that of the phase "decoder" in the engine's trace. The two degrees take turns, and each pair of runs
gives a ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks import machine, record, table
from config.config import MagmaConfig
from config.parsing import load_preset

TARGET_RATIO = 1.10
DEGREES = (1, 4)
ROWS = (168, 644)


def one_block(rows: int, tensor_parallel: int) -> MagmaConfig:
    """MAGMA's decoder block alone: one layer, a small picture encoder, a small vocabulary."""
    config = copy.deepcopy(load_preset("magma_v1_500"))
    config.visual.layers = (1, 1, 1, 1)
    config.visual.width = 12
    config.visual.image_resolution = 32
    config.transformer.layers = 1
    config.transformer.sequence_length = rows - config.image_tokens
    config.transformer.embedding.vocab_size = 512
    config.transformer.embedding.real_vocab_size = 512
    config.transformer.execution.tensor_parallel = tensor_parallel
    config.validate()
    return config


@contextmanager
def block_timer(config: MagmaConfig, checkpoint: Path, trace: Path) -> Iterator:
    """A function that runs the model once and returns the decoder's milliseconds."""
    from execution.weights import load_weights
    from inference import inference, random_inputs
    from modelling.mapping import model_weights
    from utils.checkpoint import open_checkpoint

    session = inference(config, trace)
    load_weights(session, model_weights(config, open_checkpoint(checkpoint, config)))
    inputs = random_inputs(session, config)

    def decoder_ms() -> float:
        regions = json.loads(trace.read_text())["regions"] if trace.exists() else []
        return sum(region["ms"] for region in regions if region["name"] == "decoder")

    def run() -> float:
        before = decoder_ms()
        session.run(inputs)
        return decoder_ms() - before

    with session:
        yield run


def measure(rows: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Milliseconds of every degree, in turn."""
    from utils.checkpoint_writer import write_random_checkpoint

    checkpoint = folder / "block.pt"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, one_block(rows, 1))
    samples: dict[str, list[float]] = {f"rows{rows}_tp{r}_ms": [] for r in DEGREES}
    with ExitStack() as stack:
        timers = [
            stack.enter_context(
                block_timer(one_block(rows, r), checkpoint, folder / f"{rows}_{r}.json")
            )
            for r in DEGREES
        ]
        for timer in timers:
            timer()
        for _ in range(repeats):
            for values, timer in zip(samples.values(), timers, strict=True):
                values.append(timer())
    return samples


def row(rows: int, samples: dict[str, list[float]]) -> tuple[str, ...]:
    """One line of the table; the ratios are the median of pairs, and that of the least times."""
    one, four = (samples[f"rows{rows}_tp{r}_ms"] for r in DEGREES)
    ratios = [b / a for a, b in zip(one, four, strict=True)]
    return (
        str(rows),
        *(f"{median(times):.0f} / {min(times):.0f}" for times in (one, four)),
        f"{median(ratios):.3f}",
        f"{min(four) / min(one):.3f}",
        "yes" if median(ratios) <= TARGET_RATIO else "no",
    )


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="pairs of runs")
    options = parser.parse_args()
    before = machine.measure_rates()
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in ROWS:
            samples |= measure(rows, options.repeats, Path(folder))
    outcome = record.Result(
        bench="bench_tensor_parallel",
        title="Tensor parallelism in one process: one decoder block of the real size",
        columns=("rows", "tp 1, ms", "tp 4, ms", "ratio", "of the least", f"≤ {TARGET_RATIO:.2f}"),
        rows=[row(rows, samples) for rows in ROWS],
        samples=samples,
        setting={"repeats": options.repeats},
        notes=(
            "h = 4096, 16 heads, MLP 16384, adapter 1024, float16 weights in a mapped file.",
            "Milliseconds: median / least. The ratio tp 4 / tp 1 is the median over pairs of runs"
            " made in turn; that of the least times is less disturbed by other work.",
        ),
    )
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
