"""What our own engine can be asked for; other engines of PopXL programs have no such options."""

from __future__ import annotations

import re
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
        if not _is_ours():
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

    def check(self) -> None:
        """Checks that our engine has what is asked for, by a program that does nothing.

        Raises:
            UserError: there is no such device or setting.
        """
        ir = popxl.Ir()
        self.apply(ir)
        if not _is_ours():
            return  # a session would take a device
        with ir.main_graph:
            popxl.ops.host_store(popxl.d2h_stream((), popxl.float32), popxl.constant(0.0))
        with said_of_this_machine():
            popxl.Session(ir, "ipu_hw")

    def _settings(self) -> Iterator[tuple[str, str]]:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name == "plan_only":
                yield from [("backend", "null")] if value else []
            elif value is not None:
                yield name, str(value)


ENGINE_CHOICE = EngineOptions()


def _is_ours() -> bool:
    return "popxl-torch" in popart.versionString()


@contextmanager
def said_of_this_machine() -> Iterator[None]:
    """Around the making of a session.

    Raises:
        UserError: there is no device or setting such as options or environment ask for.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the program cannot be made for this machine: {error} (the argument device, else the "
            "environment variable POPXL_DEVICE, chooses the device; POPXL_TORCH_* the engine)"
        ) from error


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


_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})", re.ASCII)


def check_budget(budget: str | int | None) -> str | int | None:
    """The budget in bytes, "auto", or None.

    Raises:
        UserError: it is no size, nothing, or more than any memory has.
    """
    text = str(budget).strip()
    if budget is None or text == "auto":
        return budget
    found = _SIZE.fullmatch(text)
    size = float(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= size < 1 << 63:
        raise UserError(
            f"device_memory is {text[:40]!r}; give bytes, a size such as 2GiB (KiB, MiB, GiB, "
            "TiB), or auto for what is free"
        )
    return int(size)


def check_weights(weights: str | None) -> str | None:
    """The way of weights, checked.

    Raises:
        UserError: there is no such way.
    """
    if weights is not None and weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}; there are {' and '.join(WEIGHTS)}")
    return weights
