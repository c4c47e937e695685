"""Builds the inference session of a configuration; as a program, times it.

python inference.py --config magma_v1_1024
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import popxl_addons as addons

from config.config import MagmaConfig
from config.parsing import given_option, parse_config
from execution.engine import EngineOptions
from execution.runs import image_host, words_host
from execution.sessions import build_session
from execution.weights import load_weights
from modelling.clip_resnet.resnet import convolution_flops
from modelling.mapping import model_weights
from modelling.shards import Arrays
from utils.checkpoint import open_checkpoint
from utils.files import require_writable
from utils.model_folder import folder_config, is_model_folder
from utils.program import run_program
from utils.random_tensors import RandomTensors

DEFAULT_PRESET = "magma_v1_1024"
TIMED_RUNS = 5


def inference(
    config: MagmaConfig, trace: Path | None = None, scheme: str = "recompute"
) -> addons.TaskSession:
    """A session that computes logits from pictures and token ids.

    Args:
        config: Read, never written to.
        trace: File for the time and bytes of each phase, written after every run.
        scheme: "recompute": a run computes the logits of all positions, from the
            inputs ``words`` and ``image``; see :func:`execution.program.build_program`. "cached":
            a run encodes pictures, reads prompts or adds a token to each; see
            :func:`execution.cached.build_cached_program`.

    Returns:
        The session, whose output is ``logits``. Its variables have no values yet.

    Raises:
        UserError: The configuration does not fit together, or there is no such scheme.
    """
    return build_session(config, scheme, EngineOptions(trace=trace))


def random_inputs(session: addons.TaskSession, config: MagmaConfig) -> dict:
    """One run's worth of token ids and pictures, by stream.

    Args:
        session: Made by :func:`inference`.
        config: The session's configuration; its seed decides the numbers.

    Returns:
        Host arrays by input stream.
    """
    rng = np.random.default_rng(config.seed)
    side = config.visual.image_resolution
    vocabulary = config.transformer.embedding.real_vocab_size
    ids = rng.integers(vocabulary, size=(config.batch, config.text_tokens))
    pictures = rng.standard_normal((config.batch, 3, side, side), np.float32)
    return {
        session.inputs.words: words_host(config, ids),
        session.inputs.image: image_host(config, pictures),
    }


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
    if checkpoint is None:
        tensors: Arrays = RandomTensors(config, config.seed, str(config.transformer.precision))
    else:
        tensors = open_checkpoint(checkpoint, config)
    session = inference(config, trace)
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
    parser.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="file with weights (default: random ones)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="file for time and bytes of each phase"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark of one configuration.

    Args:
        argv: Options; None for those of this process.

    Returns:
        The exit status: 0, or 2 after an error of the user.
    """

    def run() -> None:
        words = sys.argv[1:] if argv is None else argv
        path = Path(given_option(words, "--checkpoint") or "")
        default = folder_config(path) if is_model_folder(path) else DEFAULT_PRESET
        config, options = parse_config(words, default, _add_options, __doc__)
        if options.trace is not None:
            require_writable(options.trace)
        print(benchmark(config, options.checkpoint, options.trace))

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
