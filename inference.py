"""Builds the inference session of a configuration; as a program, times it.

python inference.py --config magma_v1_1024
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import popxl_addons as addons

from config.config import MagmaConfig
from config.parsing import parse_config
from execution.program import build_program
from execution.weights import load_weights
from modelling.clip_resnet.resnet import convolution_flops
from modelling.gptj.embedding import Embeddings
from modelling.mapping import model_weights
from modelling.shards import frozen
from utils.checkpoint import open_checkpoint
from utils.checkpoint_layout import expected_tensors
from utils.checkpoint_writer import random_tensor
from utils.errors import UserError

DEFAULT_PRESET = "magma_v1_1024"
TIMED_RUNS = 5


def inference(config: MagmaConfig, trace: Path | None = None) -> addons.TaskSession:
    """A session that computes the logits of all positions from a picture and token ids.

    Args:
        config: Read, never written to.
        trace: File for the time and bytes of each phase, written after every run.

    Returns:
        The session, whose inputs are ``words`` and ``image`` and whose output is ``logits``; see
        :func:`execution.program.build_program`. Its variables have no values yet.

    Raises:
        UserError: The configuration does not fit together.
    """
    config.validate()
    return build_program(config, trace)


class RandomCheckpoint(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint, drawn when they are read: a benchmark's stand-in for a file."""

    def __init__(self, config: MagmaConfig):
        """Draws nothing yet.

        Args:
            config: Its sizes decide the shapes, its seed the numbers.
        """
        self._precision = config.transformer.precision.value
        self._seed = config.seed
        self._rows = expected_tensors(config)

    def __getitem__(self, name: str) -> np.ndarray:
        return frozen(random_tensor(name, self._rows[name], self._seed, self._precision))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def random_inputs(session: addons.TaskSession, config: MagmaConfig) -> dict:
    """One run's worth of token ids and pictures, by stream.

    Args:
        session: Made by :func:`inference`.
        config: The session's configuration; its seed decides the numbers.

    Returns:
        Host arrays by input stream.
    """
    rng = np.random.default_rng(config.seed)
    r, words, image = config.tensor_parallel, session.inputs.words, session.inputs.image
    vocabulary = config.transformer.embedding.real_vocab_size
    ids = rng.integers(vocabulary, size=(1, *words.shape), dtype=np.int32)
    # Every replica gets all ids, counted from the first row of its own part of the table.
    ids = ids - Embeddings.offsets(config.transformer).astype(np.int32).reshape(r, 1)
    pictures = rng.standard_normal(image.shape, np.float32).astype(image.dtype.as_numpy())
    if r == 1:
        return {words: ids[0], image: pictures}
    return {words: ids, image: np.broadcast_to(pictures, (r, *image.shape))}


def flops_per_run(session: addons.TaskSession, config: MagmaConfig) -> int:
    """Floating-point operations of one run, 2 for each multiply-add.

    What popxl_addons counts (matrix products, elementwise arithmetic and normalisation, on every
    replica) plus the convolutions, which it leaves out. Those are counted once, although each
    replica has its own copy of the encoder: their results are equal.
    """
    return addons.total_FLOPs(session.ir) + config.batch * convolution_flops(config.visual)


def benchmark(config: MagmaConfig, checkpoint: Path | None, trace: Path | None) -> str:
    """Times runs on random inputs, one apart and then five.

    Args:
        config: What to run.
        checkpoint: File with weights; without one they are random and held in memory.
        trace: File for the time and bytes of each phase.

    Returns:
        A line with the mean duration of a run, sequences per second and 1e12 operations per second.
    """
    session = inference(config, trace)
    tensors = (
        RandomCheckpoint(config) if checkpoint is None else open_checkpoint(checkpoint, config)
    )
    load_weights(session, model_weights(config, tensors))
    inputs = random_inputs(session, config)
    with session:
        session.run(inputs)
        start = time.perf_counter()
        for _ in range(TIMED_RUNS):
            session.run(inputs)
        duration = (time.perf_counter() - start) / TIMED_RUNS
    tera = flops_per_run(session, config) / duration / 1e12
    return (
        f"Duration: {duration:.4f} s Throughput: {config.batch / duration:.3f} samples/s "
        f"TFLOPS/s: {tera:.3f}"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="file with weights (default: random ones)")
    parser.add_argument("--trace", type=Path, help="file for time and bytes of each phase")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark of one configuration.

    Args:
        argv: Options; None for those of this process.

    Returns:
        The exit status: 0, or 2 after an error of the user.
    """
    try:
        config, options = parse_config(argv, DEFAULT_PRESET, _add_options, __doc__)
        print(benchmark(config, options.checkpoint, options.trace))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
