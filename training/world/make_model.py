"""Makes the model that ships in models/world: text, encoder, captions, export.

    python -m training.world.make_model --out models/world --work cache/world

Every step continues where an earlier run of the same command stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Tokenizer

from config.config import MagmaConfig
from config.parsing import load_preset
from training.checkpoint import export_model, find_training_state
from training.config import TrainConfig
from training.loop import Trainer
from training.model import Magma
from training.weights import load_gptj, load_magma
from training.world.album import Album
from training.world.encoder import EncoderRun, train_encoder
from training.world.text import TextRun, train_text
from training.world.tokenizer import write_tokenizer
from utils.log import setup_logging
from utils.program import ProgramParser, run_program
from utils.tokenizer import load_tokenizer

PRESET = "world"
WEIGHTS_FILE = "model.safetensors"
PICTURES = 48_000
_PICTURE_SEED = 9
_EVAL_SEED = 7

_log = logging.getLogger(__name__)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Says how long a stage took: by the clock, and of all cores' time together."""
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    clock, cpu = (time.perf_counter() - clock) / 60, (time.process_time() - cpu) / 60
    _log.info("%s: %.1f minutes, %.1f minutes of CPU time", stage, clock, cpu)


def make_language_model(
    config: MagmaConfig, tokenizer: GPT2Tokenizer, run: TextRun, work: Path
) -> Path:
    """Step one: a GPT-J without adapters, trained on text; a Hugging Face folder of it."""
    plain = deepcopy(config)
    plain.transformer.ff_adapter.mode = None
    torch.manual_seed(run.seed)
    lm = Magma(plain).lm
    train_text(lm, tokenizer, run, work / "text.pt")
    folder = work / "language_model"
    lm.save_pretrained(folder)
    return folder


def make_model(
    config: MagmaConfig, language_model: Path, album: Album, run: EncoderRun, work: Path
) -> Magma:
    """Step two: the whole model with its language model and a pre-trained encoder."""
    torch.manual_seed(run.seed)
    model = Magma(config)
    # Its convolutions are fastest so.
    model.image_prefix.enc.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_encoder(model.image_prefix.enc, config.visual.embed_dim, album, run, work / "encoder.pt")
    load_gptj(model, language_model)
    # The prefix starts as loud as words are.
    loudness = model.lm.transformer.wte.weight.detach().square().mean().sqrt()
    nn.init.constant_(model.image_prefix.ln.weight, float(loudness))
    return model


def train_captions(
    model: Magma, tokenizer: GPT2Tokenizer, config: TrainConfig, album: Album, held_out: Album
) -> None:
    """Step three: MAGMA's training on captions, the language model frozen."""
    assert config.save is not None
    save = Path(config.save)
    state = None
    if (save / "latest").is_file():
        load_magma(model, save)
        state = find_training_state(save)
    Trainer(model, config, tokenizer, album, held_out, state).run()


def caption_config(work: Path, steps: int) -> TrainConfig:
    """Settings of the caption training."""
    return TrainConfig(
        batch_size=64,
        train_steps=steps,
        model=load_preset(PRESET),
        lr=1e-3,
        image_enc_lr=5e-4,
        lr_decay_iters=steps,
        warmup_num_steps=80,
        weight_decay=0.01,
        mixed_precision="bf16",
        save=str(work / "captions"),
        save_every=100,
        eval_every=200,
        eval_steps=4,
        log_every=20,
        tensorboard=False,
    )


def _run(argv: Sequence[str]) -> None:
    parser = ProgramParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("models") / PRESET, help="the model's folder"
    )
    parser.add_argument("--work", type=Path, default=Path("cache") / PRESET, help="for checkpoints")
    for name, default in (("text", 4500), ("encoder", 1200), ("caption", 1500)):
        parser.add_argument(
            f"--{name}_steps", type=int, default=default, help="default: %(default)s"
        )
    parser.add_argument("--pictures", type=int, default=PICTURES, help="default: %(default)s")
    options = parser.parse_args(argv)
    setup_logging("INFO")
    options.work.mkdir(parents=True, exist_ok=True)
    with timed("all stages"):
        _make(options)


def _make(options: argparse.Namespace) -> None:
    work = options.work
    write_tokenizer(options.out)
    tokenizer, config = load_tokenizer(options.out), load_preset(PRESET)
    with timed("text"):
        run = TextRun(steps=options.text_steps)
        language_model = make_language_model(config, tokenizer, run, work)
    side = config.visual.image_resolution
    with timed("pictures"):
        train = Album(work / "train.npy", tokenizer, "train", options.pictures, _PICTURE_SEED, side)
        held_out = Album(work / "held_out.npy", tokenizer, "held_out", 256, _EVAL_SEED, side)
    with timed("encoder"):
        encoder_run = EncoderRun(steps=options.encoder_steps)
        model = make_model(config, language_model, train, encoder_run, work)
    with timed("captions"):
        train_captions(
            model, tokenizer, caption_config(work, options.caption_steps), train, held_out
        )
    export_model(model.state_dict(), options.out / WEIGHTS_FILE, torch.float16)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; exit status as `utils.program.run_program` gives it."""
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
