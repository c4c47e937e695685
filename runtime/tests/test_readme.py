"""The example of the README runs and prints what it should."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    numbers = re.findall(r"[\d.]+", capsys.readouterr().out)
    assert [float(number) for number in numbers] == [3.0] * 4 + [12.0] * 4
