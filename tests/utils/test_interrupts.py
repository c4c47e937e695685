"""A program that is interrupted while it imports says nothing; other errors are told."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (
    "run_inference",
    "inference",
    "evaluate",
    "train",
    "execution.convert",
    "training.convert_dataset",
)


def _after_first_import(
    module: str, raised: str, name: str = "__main__"
) -> subprocess.CompletedProcess[str]:
    """Runs a program in whose imports something is raised once they ask for `config`."""
    code = (
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.startswith('config.'): raise {raised}\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_module('{module}', run_name='{name}')"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", PROGRAMS)
def test_an_interrupted_import_is_quiet(module: str) -> None:
    ended = _after_first_import(module, "KeyboardInterrupt")
    assert ended.returncode in (-signal.SIGINT, 130)
    assert ended.stdout + ended.stderr == ""


def test_other_errors_of_imports_are_told() -> None:
    ended = _after_first_import("run_inference", "ZeroDivisionError")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_who_imports_a_program_as_a_module_sees_interrupts() -> None:
    ended = _after_first_import("run_inference", "KeyboardInterrupt", name="run_inference")
    assert "KeyboardInterrupt" in ended.stderr
