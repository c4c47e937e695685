"""Every program of this folder runs on every engine."""

from __future__ import annotations

import pytest

ENGINES = {
    "plan": {},
    "unjoined": {"POPXL_TORCH_JOIN_SHARDS": "0"},
    "fast": {"POPXL_TORCH_ARITHMETIC": "fast"},
    "interpreter": {"POPXL_TORCH_EXECUTOR": "interpreter"},
}


@pytest.fixture(autouse=True, params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the engine under test, whose settings are the environment's."""
    monkeypatch.setenv("POPXL_DEVICE", "cpu")
    for name, value in ENGINES[request.param].items():
        monkeypatch.setenv(name, value)
    return request.param
