"""Log levels and seeds."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest

from utils.errors import UserError
from utils.log import set_seeds, setup_logging


def test_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APP_LOG_LEVEL", raising=False)
    setup_logging()
    assert logging.getLogger().level == logging.INFO
    monkeypatch.setenv("APP_LOG_LEVEL", "error")
    setup_logging()
    assert logging.getLogger().level == logging.ERROR
    setup_logging("debug")
    assert logging.getLogger().level == logging.DEBUG


def test_records_go_to_stderr_and_chatty_libraries_are_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging("INFO")
    logging.getLogger("ours").info("a fact")
    logging.getLogger("httpx").info("a request")
    captured = capsys.readouterr()
    assert "INFO ours: a fact" in captured.err
    assert "a request" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("level", ["LOUD", "10", "info "])
def test_unknown_level_is_refused(level: str) -> None:
    with pytest.raises(UserError, match="must be one of DEBUG"):
        setup_logging(level)


def test_seeds_reach_every_generator() -> None:
    torch = pytest.importorskip("torch")
    state = random.getstate()

    def draw(seed: int) -> tuple[float, float, float]:
        set_seeds(seed)
        # The global generator of numpy is what has to be seeded.
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    first, other, again = draw(1), draw(2), draw(1)
    random.setstate(state)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
