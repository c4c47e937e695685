"""Exceptions of the front end."""

from typing import NoReturn


class UndefinedValue(Exception):
    """A tensor's IPU or tile set is not known."""


def _not_implemented(name: str) -> NoReturn:
    """The answer of public names whose behaviour is still to be built."""
    raise NotImplementedError(f"{name} is not implemented yet in popxl-torch.")
