"""Answer a prompt about a picture with MAGMA: the program and its Python interface.

    python run_inference.py --image picture.jpg --prompt "A picture of"

A notebook uses the two functions::

    session, config, tokenizer = init_inference_session("magma_v1_500", "checkpoints/magma.pt")
    text = run_inference(session, config, tokenizer, "picture.jpg", "A picture of", seed=0)
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from config.config import MagmaConfig
from config.parsing import load_preset, parse_config
from execution.generate import Generation, check_lengths, generate
from execution.report import phase_table
from execution.weights import load_weights
from inference import SCHEMES, check_scheme, inference
from modelling.mapping import model_weights
from utils.checkpoint import Checkpoint, open_checkpoint
from utils.checkpoint_sources import RELEASE_PRESET, published_checkpoint, random_checkpoint
from utils.errors import UserError
from utils.files import atomic_file, require_writable
from utils.images import load_image, preprocess
from utils.log import check_level, default_level, set_seeds, setup_logging
from utils.program import run_program
from utils.sampling import Sampling
from utils.tokenizer import tokenizer_for

if TYPE_CHECKING:
    from popxl_addons import TaskSession
    from simple_parsing import ArgumentParser
    from transformers import GPT2Tokenizer

DEMO_PRESET = "tiny"
DEMO_IMAGE = Path(__file__).resolve().parent / "examples" / "lake_cabin.jpg"
DEFAULT_PROMPT = "A picture of"
DEFAULT_SCHEME = "cached"

_log = logging.getLogger("run_inference")

_DESCRIPTION = """\
Answer a prompt about a picture with MAGMA.

Without --config and --checkpoint this is a demonstration in seconds: config 'tiny', random weights,
the example picture; its text means nothing. With a checkpoint the config is 'magma_v1_500'.
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
  python run_inference.py --temperature 0 --dump_logits logits.npy --dump_tokens tokens.json
      what the text was made of, as files

A prompt should not end with a space. APP_LOG_LEVEL is the default of --log_level.
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
            ``tiny`` it makes a small random one.
        scheme: "cached" keeps keys and values, so that a token costs one position; "recompute" runs
            everything again for every token.

    Returns:
        The entered session, its configuration and the tokenizer, for :func:`run_inference`.

    Raises:
        UserError: unknown preset or scheme, no or wrong checkpoint, no tokenizer.
    """
    config = load_preset(key)
    check_scheme(scheme)
    checkpoint, tokenizer = _prepare(config, key, checkpoint_path)
    return _open_session(config, checkpoint, scheme), config, tokenizer


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
    sampling = Sampling(temperature, top_k, top_p, seed)
    sampling.validate()
    set_seeds(seed)
    prompt_ids = encode_prompt(tokenizer, text_prompt)
    check_lengths(config, [prompt_ids] * config.batch, max_out_tokens)
    image = _load_picture(config, image_url)
    results = _generate(session, config, tokenizer, image, prompt_ids, sampling, max_out_tokens)
    return decode(tokenizer, results[0])


def encode_prompt(tokenizer: GPT2Tokenizer, text: str) -> list[int]:
    """The ids of a prompt, nothing added.

    Raises:
        UserError: the text is not valid Unicode.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid text: {error.reason}; use UTF-8") from error
    # The tokenizer would warn about lengths that check_lengths refuses in its own words.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def decode(tokenizer: GPT2Tokenizer, result: Generation) -> str:
    """The text of a result's new ids, special tokens left out."""
    return str(tokenizer.decode(result.generated_ids, skip_special_tokens=True))


def _load_picture(config: MagmaConfig, source: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """One picture, repeated for every sequence of the batch: (b, 3, y, x)."""
    image = preprocess(load_image(source), config.visual.image_resolution)
    return np.broadcast_to(image, (config.batch, *image.shape[1:]))


def _generate(
    session: TaskSession,
    config: MagmaConfig,
    tokenizer: GPT2Tokenizer,
    image: npt.NDArray[np.float32],
    prompt_ids: list[int],
    sampling: Sampling,
    max_out_tokens: int,
) -> list[Generation]:
    # The session stays attached outside of this block too: init_inference_session entered it.
    with session:
        return generate(
            session,
            config,
            image,
            [prompt_ids] * config.batch,
            sampling,
            max_out_tokens,
            eos_id=tokenizer.eos_token_id,
        )


def _prepare(
    config: MagmaConfig, preset: str, checkpoint_path: str | os.PathLike[str] | None
) -> tuple[Checkpoint, GPT2Tokenizer]:
    """Open and check what a session needs, before the work of building it."""
    if checkpoint_path is not None:
        path = Path(checkpoint_path)
    elif preset == DEMO_PRESET:
        path = random_checkpoint(config)
    else:
        path = published_checkpoint(config)
    checkpoint = open_checkpoint(path, config)
    return checkpoint, tokenizer_for(path, config.transformer.embedding.real_vocab_size)


def _open_session(
    config: MagmaConfig, checkpoint: Checkpoint, scheme: str, trace: Path | None = None
) -> TaskSession:
    session = inference(config, trace, scheme)
    load_weights(session, model_weights(config, checkpoint))
    session.__enter__()
    return session


def _add_options(parser: ArgumentParser) -> None:
    answer = parser.add_argument_group("what to answer")
    answer.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="weights: .pt or .safetensors file, index or folder (default: the published file, "
        "downloaded; random weights for config tiny)",
    )
    answer.add_argument(
        "--image", metavar="PATH_OR_URL", default=str(DEMO_IMAGE), help="picture, local or http(s)"
    )
    answer.add_argument("--prompt", metavar="TEXT", default=DEFAULT_PROMPT, help="text to continue")
    answer.add_argument(
        "--scheme",
        choices=sorted(SCHEMES),
        default=DEFAULT_SCHEME,
        help="cached keeps keys and values, recompute runs everything again for every token",
    )
    answer.add_argument(
        "--num_samples",
        type=int,
        metavar="N",
        help="answers to draw for the picture and the prompt (default: micro_batch_size)",
    )
    _add_sampling_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--dump_logits",
        metavar="FILE.npy",
        help="write the next-token logits of every step, float32 [new tokens, vocab_size]",
    )
    output.add_argument(
        "--dump_tokens", metavar="FILE.json", help="write prompt_ids and generated_ids"
    )
    output.add_argument(
        "--log_level",
        metavar="LEVEL",
        default=default_level(),
        help="DEBUG, INFO, WARNING, ERROR or CRITICAL",
    )


def _add_sampling_options(parser: ArgumentParser) -> None:
    choice = parser.add_argument_group("how tokens are chosen (with --seed below)")
    choice.add_argument(
        "--temperature", type=float, default=0.7, help="0: most probable token; larger: more random"
    )
    choice.add_argument(
        "--top_k", type=int, default=0, help="draw among the k most probable tokens; 0: all"
    )
    choice.add_argument(
        "--top_p",
        type=float,
        default=0.9,
        help="draw among the most probable tokens that reach this probability together",
    )
    choice.add_argument("--max_out_tokens", type=int, default=6, help="new tokens at most")


def _default_preset(argv: Sequence[str]) -> str:
    with_checkpoint = any(word.split("=", 1)[0] == "--checkpoint" for word in argv)
    return RELEASE_PRESET if with_checkpoint else DEMO_PRESET


def _with_batch(config: MagmaConfig, samples: int) -> MagmaConfig:
    """The configuration for so many sequences at a time."""
    if samples < 1:
        raise UserError(f"num_samples is {samples}; it must be 1 or greater")
    config = deepcopy(config)
    config.visual.execution.micro_batch_size = samples
    config.transformer.execution.micro_batch_size = samples
    return config


def _dump(options: Namespace, result: Generation) -> None:
    if options.dump_logits is not None:
        with atomic_file(options.dump_logits, result.logits.nbytes) as file:
            np.save(file, result.logits)
    if options.dump_tokens is not None:
        ids = {"prompt_ids": result.prompt_ids, "generated_ids": result.generated_ids}
        with atomic_file(options.dump_tokens) as file:
            file.write((json.dumps(ids) + "\n").encode())


def _run(argv: Sequence[str]) -> None:
    config, options = parse_config(
        argv, _default_preset(argv), _add_options, _DESCRIPTION, _EXAMPLES
    )
    if options.num_samples is not None:
        config = _with_batch(config, options.num_samples)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, config.seed)
    sampling.validate()
    setup_logging(check_level(options.log_level))
    for path in (options.dump_logits, options.dump_tokens):
        if path is not None:
            require_writable(path)
    check_lengths(config, [[]] * config.batch, options.max_out_tokens)
    image = _load_picture(config, options.image)
    checkpoint, tokenizer = _prepare(config, options.config, options.checkpoint)
    prompt_ids = encode_prompt(tokenizer, options.prompt)
    check_lengths(config, [prompt_ids] * config.batch, options.max_out_tokens)
    _log.info("process %d, config %s: %s", os.getpid(), options.config, config.as_dict())
    if options.checkpoint is None and options.config == DEMO_PRESET:
        _log.info("random weights (%s): the text means nothing", checkpoint.path)
    with tempfile.TemporaryDirectory(prefix="magma-") as folder:
        trace = Path(folder) / "trace.json"
        session = _open_session(config, checkpoint, options.scheme, trace)
        results = _generate(
            session, config, tokenizer, image, prompt_ids, sampling, options.max_out_tokens
        )
        table = phase_table(trace)
    # Printed first: a file that cannot be written must not cost the answer.
    print(f"prompt:    {options.prompt}")
    for result in results:
        print(f"generated: {decode(tokenizer, result)}")
    print(f"\n{table}")
    _dump(options, results[0])


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
