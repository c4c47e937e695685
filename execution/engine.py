"""What our own engine can be asked for; other engines of PopXL programs have no such options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import popart
import popxl

from utils.errors import UserError

WEIGHTS = ("mapped", "read", "pinned")
"""How weights get from files to where they are used."""


@dataclass(frozen=True)
class EngineOptions:
    """How a program is run. None is the engine's choice.

    Attributes:
        device: such as "cpu" and "cuda:0".
        device_memory: what a session may take, on a CPU of anonymous memory, on a GPU of its own:
            bytes, or text such as "2GiB" and "auto".
        weights: one of WEIGHTS; "read" keeps what fits the budget and reads the rest for each use,
            "pinned" keeps the rest in pinned memory of the host, for a GPU.
        trace: file to which the time and bytes of each phase are written after every run.
        memory_plan: file to which is written what is kept where.
        plan_only: whether nothing is computed and no weights are needed.
    """

    device: str | None = None
    device_memory: str | int | None = None
    weights: str | None = None
    trace: Path | None = None
    memory_plan: Path | None = None
    plan_only: bool = False

    def apply(self, ir: popxl.Ir) -> None:
        """Sets the options of a program, if the engine is ours; others would stumble over them.

        Raises:
            UserError: the engine is another one, and has been asked for what it does not have.
        """
        if "popxl-torch" not in popart.versionString():
            for name in ("device", "device_memory", "weights", "plan_only"):
                if value := getattr(self, name):
                    raise UserError(
                        f"{name} is {value!r}, but this PopXL runs on IPUs only; leave it out"
                    )
            return
        options = ir._pb_ir.getSessionOptions().engineOptions
        options["popxl_torch.arithmetic"] = "fast"
        for name, text in self._settings():
            options[f"popxl_torch.{name}"] = text

    def _settings(self) -> Iterator[tuple[str, str]]:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name == "plan_only":
                yield from [("backend", "null")] if value else []
            elif value is not None:
                yield name, str(value)


ENGINE_CHOICE = EngineOptions()


class NoRoomError(UserError):
    """A budget of memory that is too small."""


@contextmanager
def memory_and_files() -> Iterator[None]:
    """Around whatever has the engine plan its memory or read weights.

    Raises:
        NoRoomError: the budget is too small.
        UserError: a file of weights cannot be read.
    """
    try:
        yield
    except popart.session.OutOfMemoryException as error:
        raise NoRoomError(str(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"{error.filename}: cannot read the weights: {error.strerror}") from error


def check_budget(budget: str | int | None) -> str | int | None:
    """The budget, checked for what the engine cannot know: that whoever gives one means one.

    Raises:
        UserError: the budget is nothing, or less.
    """
    number = "" if budget is None else str(budget).strip()
    if number.lstrip("-").isdecimal() and int(number) <= 0:
        raise UserError(f"device_memory is {number}; give a size such as 2GiB, or auto")
    return budget


def check_weights(weights: str | None) -> str | None:
    """The way of weights, checked.

    Raises:
        UserError: there is no such way.
    """
    if weights is not None and weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}; there are {' and '.join(WEIGHTS)}")
    return weights
