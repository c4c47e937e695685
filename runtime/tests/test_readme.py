"""The example of the README runs and prints what it should; every setting is documented."""

from __future__ import annotations

import re
from pathlib import Path

from popxl_torch import settings

README = Path(__file__).parents[1] / "README.md"
GUIDE = Path(__file__).parents[2] / "docs" / "debugging.md"


def test_the_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    numbers = re.findall(r"[\d.]+", capsys.readouterr().out)
    assert [float(number) for number in numbers] == [3.0] * 4 + [12.0] * 4


def test_every_environment_variable_is_documented():
    sources = (Path(settings.__file__).parent).rglob("*.py")
    used = {
        name
        for source in sources
        for name in re.findall(r"\bPOPXL_(?:TORCH_)?[A-Z_]+\b", source.read_text())
    }
    assert set(settings._ENVIRONMENT.values()) <= used
    assert used == set(re.findall(r"\bPOPXL_(?:TORCH_)?[A-Z_]+\b", GUIDE.read_text()))
