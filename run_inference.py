"""Answer a prompt about a picture with MAGMA: the program and its Python interface.

    python run_inference.py --image picture.jpg --prompt "A picture of"

A notebook uses the two functions::

    session, config, tokenizer = init_inference_session("magma_v1_500", "checkpoints/magma.pt")
    text = run_inference(session, config, tokenizer, "picture.jpg", "A picture of", seed=0)
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from config.config import MagmaConfig
from config.parsing import given_option, load_preset, parse_config
from execution.command import (
    Printer,
    add_options,
    asked_prompts,
    dump,
    generation_options,
    planned_weights,
    score_lines,
)
from execution.engine import EngineOptions, check_budget
from execution.magma import Magma
from execution.options import Options, resolve
from execution.prompts import check_length
from execution.report import memory_table, phase_table
from execution.sessions import planned_memory
from utils.checkpoint_sources import (
    RANDOM_PRESET,
    RELEASE_PRESET,
    SHIPPED_PRESET,
    checkpoint_of,
)
from utils.errors import UserError
from utils.files import require_writable
from utils.log import check_level, set_seeds, setup_logging
from utils.model_folder import folder_config, is_model_folder
from utils.program import run_program

if TYPE_CHECKING:
    from popxl_addons import TaskSession
    from transformers import GPT2Tokenizer

DEFAULT_SCHEME = "cached"

_log = logging.getLogger("run_inference")

_DESCRIPTION = """\
Answer a prompt about a picture with MAGMA.

Without --config and --checkpoint it is the small trained model of models/world, which knows a made
world of emoji: a demonstration in seconds. With a checkpoint the config is 'magma_v1_500', or
that of the model folder.
"""

_EXAMPLES = """\
examples:
  python run_inference.py
      the demonstration
  python run_inference.py --checkpoint mp_rank_00_model_states.pt --image dog.jpg \\
      --prompt "Q: What is the dog doing? A:" --temperature 0 --max_out_tokens 12
      the published model's most probable answer; without --checkpoint, --config magma_v1_500
      downloads it (12 GiB) into $DATASETS_DIR or ./cache
  python run_inference.py --config magma_v1_500 --image https://example.org/cat.png --seed 7
      a sampled caption; another seed gives another one
  python run_inference.py --config tiny --transformer.layers 4 --heads 4 --visual.layers 1 1 1 1
      any field of the config by its dotted name, or its bare one where that is unambiguous
  python run_inference.py --image a.jpg --prompt "A picture of" --prompt "Q: Where is this? A:"
      both prompts about one picture; several --image and --prompt are paired in order, one --prompt
      goes with every --image
  python run_inference.py --image a.jpg --image b.jpg --prompt "{image} A dog. {image} A"
      pictures where the prompt says so, in order
  python run_inference.py --checkpoint folder --weights read --device_memory 2GiB
      in 2 GiB of memory: weights that do not fit are read from the model folder for each token;
      with --plan_only what is kept where, without weights; --plan_only int8 for a folder of that
  python run_inference.py --no_image --prompt "The capital of France is"
      text alone
  python run_inference.py --image a.jpg --prompt "Is this a cat? A:" --score " yes" --score " no"
      which answer is more probable
  python run_inference.py --temperature 0 --dump_logits logits.npy --dump_tokens tokens.json
      what the text was made of, as files

A prompt should not end with a space. APP_LOG_LEVEL is the default of --log_level.
Text appears as it is made; Ctrl-C keeps it, writes the files and ends with status 130.
Wrong input ends with one line "error: ..." and status 2.
"""


def init_inference_session(
    key: str = RELEASE_PRESET,
    checkpoint_path: str | os.PathLike[str] | None = None,
    scheme: str = DEFAULT_SCHEME,
) -> tuple[TaskSession, MagmaConfig, GPT2Tokenizer]:
    """Build a preset's program, write a checkpoint's weights and stay attached to the device.

    Args:
        key: name of a preset.
        checkpoint_path: checkpoint file, index or folder. None downloads the published one; for
            ``world`` it is the small one of this repository, for ``tiny`` a random one.
        scheme: "cached" keeps keys and values, so that a token costs one position; "recompute" runs
            everything again for every token.

    Returns:
        The entered session, its configuration and the tokenizer, for :func:`run_inference`.

    Raises:
        UserError: unknown preset or scheme, no or wrong checkpoint, no tokenizer.
    """
    config = load_preset(key)
    path = None if checkpoint_path is None else Path(checkpoint_path)
    magma = Magma.of_config(config, path or checkpoint_of(key, config), scheme=scheme)
    return magma.open_session(), config, magma.tokenizer


def run_inference(
    session: TaskSession,
    config: MagmaConfig,
    tokenizer: GPT2Tokenizer,
    image_url: str | os.PathLike[str],
    text_prompt: str,
    seed: int,
    top_p: float = 0.9,
    top_k: float = 0,
    temperature: float = 0.7,
    max_out_tokens: int = 6,
) -> str:
    """Continue a prompt about a picture.

    Args:
        session: what :func:`init_inference_session` returned, as the next two.
        config: the session's configuration.
        tokenizer: the model's tokenizer.
        image_url: path, or http or https address, of the picture.
        text_prompt: text to continue; may be empty.
        seed: the same seed gives the same text.
        top_p: draw among the most probable tokens that together reach this probability.
        top_k: draw among this many most probable tokens; 0 for all.
        temperature: 0 takes the most probable token; larger is more random.
        max_out_tokens: tokens of the answer at most.

    Returns:
        The new text, without the prompt.

    Raises:
        UserError: a value out of its range, no picture, or a prompt that does not fit.
    """
    set_seeds(seed)
    # The session stays attached outside of this block too: init_inference_session entered it.
    with session:
        answers = Magma.of_session(session, config, tokenizer).generate(
            image_url,
            text_prompt,
            seed=seed,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            max_new_tokens=max_out_tokens,
        )
    return answers[0].text


def _default_config(argv: Sequence[str]) -> str | MagmaConfig:
    """What holds without --config: what the checkpoint's folder says, or a preset."""
    checkpoint = given_option(argv, "--checkpoint")
    if checkpoint is None:
        return SHIPPED_PRESET
    path = Path(checkpoint)
    return folder_config(path) if is_model_folder(path) else RELEASE_PRESET


def _run(argv: Sequence[str]) -> None:
    config, options = parse_config(
        argv, _default_config(argv), add_options, _DESCRIPTION, _EXAMPLES
    )
    how = generation_options(options, config.batch, config.seed)
    resolve(how, None, config.seed)
    setup_logging(check_level(options.log_level))
    engine = EngineOptions(
        device_memory=check_budget(options.device_memory), weights=options.weights
    )
    if options.plan_only is not None:
        print(planned_memory(config, options.scheme, engine, planned_weights(config, options)))
        return
    for path in (options.dump_logits, options.dump_tokens):
        if path is not None:
            require_writable(path)
    _check_score(options)
    check_length(config, [], options.max_out_tokens, f"{options.max_out_tokens} new ones")
    prompts = asked_prompts(options)
    checkpoint = None if options.checkpoint is None else Path(options.checkpoint)
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        magma = Magma.of_config(
            config,
            checkpoint or checkpoint_of(options.config, config),
            scheme=options.scheme,
            trace=Path(folder),
            device_memory=engine.device_memory,
            weights=engine.weights,
        )
        with magma:
            _answer(magma, prompts, how, options, Path(folder))


def _check_score(options: Namespace) -> None:
    names = ("dump_logits", "dump_tokens", "logprobs", "num_samples", "stop", "stop_token")
    given = [name for name in names if getattr(options, name) is not None]
    given += ["skip_bad"] * options.skip_bad
    if options.score and given:
        raise UserError(f"--score generates nothing: leave out --{' and --'.join(given)}")


def _answer(magma: Magma, prompts: list, how: Options, options: Namespace, folder: Path) -> None:
    labels, pieces = zip(*prompts, strict=True)
    if options.score:
        scores = magma.score(prompts=list(pieces), continuations=options.score)
        for label, line in zip(labels, scores, strict=True):
            print(f"prompt:    {label}", *score_lines(line), sep="\n")
        return
    stream = magma.stream(prompts=list(pieces), skip_bad=options.skip_bad, **how)
    config = magma.config.as_dict()
    name = options.config or f"of {options.checkpoint}"
    _log.info("process %d, config %s: %s", os.getpid(), name, config)
    if options.checkpoint is None and options.config == RANDOM_PRESET:
        _log.info("random weights: the text means nothing")
    try:
        # Printed first: a file that cannot be written must not cost the answer.
        Printer(labels, stream, options.logprobs is not None).run()
    finally:
        if any(answer.ids for answer in stream.answers):
            for trace in sorted(folder.glob("batch_*.json")) or [None]:
                print(f"\n{phase_table(trace)}")
            if options.device_memory or options.weights:
                for plan in sorted(folder.glob("memory_*.json")) or [None]:
                    print(f"\n{memory_table(plan)}")
        dump(options, stream.answers, magma.config.transformer.embedding.vocab_size)
    if all(answer.error is not None for answer in stream.answers):
        raise UserError("nothing was answered: no picture of any prompt can be used")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None for those of this process.

    Returns:
        Exit status: 0, 2 for wrong input, 130 when interrupted.
    """
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
