"""Trains MAGMA, or a language model on text alone: ``python train.py --config FILE``."""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_quietly

    end_quietly()  # if Ctrl-C comes during the imports below

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from simple_parsing.docstring import get_attribute_docstring

from training.config import TrainConfig, read_config, read_yaml
from utils.errors import UserError
from utils.log import check_level, default_level, setup_logging
from utils.program import ProgramParser, run_program

_EPILOG = """\
The file is YAML with the same names:

  model: tiny                       # a preset, or the model's fields
  train_dataset_dir: [data/coco]    # as python -m training.convert_dataset writes it
  adapter_config: {mlp: {adapter_type: normal, downsample_factor: 4}}
  image_enc_lr: 2.0e-6
  save: runs/first

Run the same command again to continue after a stop. Several GPUs or machines:
accelerate launch train.py --config FILE, or torchrun --nproc_per_node 2 train.py --config FILE.
"""


def _parser() -> ProgramParser:
    parser = ProgramParser(description=__doc__, epilog=_EPILOG)
    parser.add_argument("--config", metavar="FILE", help="settings, a YAML file")
    parser.add_argument("--log_level", default=default_level(), help="DEBUG, INFO, WARNING, ...")
    group = parser.add_argument_group("settings (each overrides the file's)")
    for entry in fields(TrainConfig):
        text = get_attribute_docstring(TrainConfig, entry.name).docstring_below
        if isinstance(entry.default, str | int | float) and entry.default != "":
            text += f" (default: {entry.default})"
        kind = str(entry.type)
        group.add_argument(
            f"--{entry.name}",
            metavar="VALUE",
            nargs="+" if "tuple" in kind else "?" if kind == "bool" else None,
            const="true" if kind == "bool" else None,  # a name alone switches it on
            help=text.replace("%", "%%"),
        )
    return parser


def _settings(argv: Sequence[str]) -> tuple[TrainConfig, str]:
    """The run's settings, and the level of its log."""
    options = _parser().parse_args(argv)
    values: dict[str, Any] = {} if options.config is None else read_yaml(Path(options.config))
    names = {entry.name for entry in fields(TrainConfig)}
    for name, given in vars(options).items():
        if name in names and given is not None:
            values[name] = _value(name, given)
    return read_config(values, options.config or "command line"), options.log_level


def _value(name: str, given: str | list[str]) -> Any:
    """What an option's text means, as in the file."""
    if isinstance(given, list):
        return given
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise UserError(f"option --{name}: '{given}' is no YAML") from error


def _run(argv: Sequence[str]) -> None:
    config, level = _settings(argv)
    setup_logging(check_level(level))
    # Not above: it imports torch and transformers, which --help and wrong settings do not need.
    from training.run import train

    train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 for wrong input, 130 when interrupted."""
    return run_program(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
