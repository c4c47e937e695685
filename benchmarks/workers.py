"""Engines in processes of their own, which take turns.

A process is started once, keeps its engine, and does one call at a time while the others wait. So
engines that set up their threads differently, or read different environment variables, can be
interleaved in one benchmark.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, spawn
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

STOP_WITHIN_S = 10.0


class Worker:
    """An object in a process of its own. Its method `close`, if it has one, is called last."""

    def __init__(
        self,
        factory: str,
        *arguments: Any,
        environment: dict[str, str] | None = None,
        launcher: Path | None = None,
    ) -> None:
        """Starts the process and makes the object.

        Args:
            factory: "module:name" of what makes the object.
            arguments: Its arguments.
            environment: Variables to set before the module is imported.
            launcher: A program to start instead of Python, which becomes Python.

        Raises:
            RuntimeError: Making the object failed; with the other process's traceback.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, factory, arguments, environment or {}), daemon=True
        )
        with _started_by(launcher):
            self._process.start()
        other.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the object returns.

        Raises:
            RuntimeError: The method failed, or the process ended.
        """
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            good, value = self._connection.recv()
        except EOFError:
            self._process.join(STOP_WITHIN_S)
            code = self._process.exitcode
            raise RuntimeError(f"the worker process ended with exit code {code}") from None
        if not good:
            raise RuntimeError(f"in the worker process:\n{value}")
        return value

    def close(self) -> None:
        """Ends the process, and with it all that its engine holds."""
        self._connection.close()
        self._process.join(STOP_WITHIN_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def _started_by(launcher: Path | None) -> Iterator[None]:
    """Processes start with a launcher meanwhile."""
    if launcher is None:
        yield
        return
    resource_tracker.ensure_running()  # else it would start that way too
    python = spawn.get_executable()
    spawn.set_executable(str(launcher))
    try:
        yield
    finally:
        spawn.set_executable(python)


def _serve(
    connection: Connection, factory: str, arguments: tuple[Any, ...], environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    try:
        module, _, name = factory.partition(":")
        made = getattr(importlib.import_module(module), name)(*arguments)
        connection.send((True, None))
    except Exception:
        connection.send((False, traceback.format_exc()))
        return
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            break
        try:
            connection.send((True, getattr(made, method)(*arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))
    close = getattr(made, "close", None)
    if close is not None:
        close()
