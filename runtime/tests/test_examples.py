"""Every example runs, checks itself, and prints something."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 21


@pytest.mark.parametrize("executor", ["plan", "interpreter"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path,
    executor: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("POPXL_TORCH_EXECUTOR", executor)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
