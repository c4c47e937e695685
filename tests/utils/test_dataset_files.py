"""Which files a dataset has, in which order, and what becomes of bad samples.

What records may hold is tested where they are read: tests/training/test_dataset.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.dataset_files import BadSamples, picture_path, sample_files
from utils.errors import UserError


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path):
    names = ["0/2.json", "0/10.json", "1/9.json", "10/0.json", "x/0.json"]
    for name in reversed(names):
        (tmp_path / "image_data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "image_data" / name).touch()
    found = [
        path.relative_to(tmp_path / "image_data").as_posix() for path in sample_files(tmp_path)
    ]
    assert found == ["x/0.json", *names[:-1]]


@pytest.mark.parametrize("name", ["a\0b.jpg", "a" * 5000, "images", "none.jpg", ""])
def test_names_of_no_picture(tmp_path: Path, name):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"0\.json: its picture .* is missing"):
        picture_path(tmp_path, tmp_path / "0.json", {"image_path": name})


def test_bad_samples_end_the_work_or_are_noted(caplog):
    with pytest.raises(UserError, match="x is bad; mend it, or leave such samples out"):
        BadSamples(skip=False).add("x is bad")
    bad = BadSamples(skip=True)
    bad.add("x is bad")
    assert bad.lines == ["x is bad"]
    assert "left out: x is bad" in caplog.text
