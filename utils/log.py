"""Logging and seeds of a program run."""

from __future__ import annotations

import logging
import os
import random
import sys

import numpy as np

from utils.errors import UserError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
ENVIRONMENT_VARIABLE = "APP_LOG_LEVEL"
DEFAULT_LEVEL = "INFO"

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Libraries that report every request at INFO.
_CHATTY = ("httpx", "httpx2", "httpcore", "huggingface_hub", "urllib3", "filelock", "PIL")


def default_level() -> str:
    """The level that applies without an option: the variable APP_LOG_LEVEL, else INFO."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_LEVEL


def check_level(level: str) -> str:
    """The level in capitals.

    Raises:
        UserError: it is none of LEVELS.
    """
    if level.upper() not in LEVELS:
        raise UserError(f"log level is '{level}'; it must be one of {', '.join(LEVELS)}")
    return level.upper()


def setup_logging(level: str | None = None) -> None:
    """Send log records of this level and above to stderr.

    Args:
        level: one of LEVELS in any case; None for the environment's.

    Raises:
        UserError: no such level.
    """
    level = check_level(level or default_level())
    logging.basicConfig(level=level, format=_FORMAT, stream=sys.stderr, force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(level if level == "DEBUG" else logging.WARNING)


def set_seeds(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators.

    The programs draw from generators of their own; this is for code around them, such as a
    notebook's, that uses the global ones.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what has to be seeded
    torch.manual_seed(seed)
