"""Sessions of several sizes over the same weights: which are open, which is used."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from config.config import MagmaConfig
from execution import sessions
from execution.engine import EngineOptions, NoRoomError
from execution.runs import runs_of
from execution.sessions import (
    OneSession,
    Sessions,
    _ways_to_read,
    build_session,
    enter_session,
    planned_memory,
)
from modelling.mapping import model_weights
from tests.small_configs import small_config
from tests.small_sessions import WEIGHTS_SEED
from tests.tolerances import FLOAT32, assert_close
from utils.errors import UserError
from utils.random_tensors import RandomTensors


class FakeSession:
    """Says when it is entered and left."""

    def __init__(self, config: MagmaConfig, log: list[str]) -> None:
        self.batch, self.log = config.batch, log
        self.inputs = SimpleNamespace(words="words", image="image")

    def __enter__(self) -> FakeSession:
        self.log.append(f"enter {self.batch}")
        return self

    def __exit__(self, *_error: object) -> None:
        self.log.append(f"leave {self.batch}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens to sessions."""
    events: list[Any] = []

    def build(config: MagmaConfig, scheme: str, engine: EngineOptions) -> FakeSession:
        events.append((f"build {config.batch}", engine))
        return FakeSession(config, events)

    monkeypatch.setattr(sessions, "build_session", build)
    monkeypatch.setattr(sessions, "load_weights", lambda session, weights: None)
    return events


def names(log: list[Any]) -> list[str]:
    return [event if isinstance(event, str) else event[0] for event in log]


def test_a_session_with_room_is_used_again(log):
    opened = Sessions(small_config(), {}, "cached", 0)
    first = opened.with_room(4)
    assert opened.with_room(4) is first
    # At most half of the places are left empty.
    assert opened.with_room(2) is first
    assert opened.with_room(1) is not first
    assert names(log) == ["build 4", "enter 4", "build 1", "enter 1"]


def test_the_session_that_was_not_used_for_longest_gives_way(log):
    opened = Sessions(small_config(), {}, "cached", 0)
    for sequences in (8, 1, 8, 3):
        opened.with_room(sequences)
    assert names(log)[4:] == ["leave 1", "build 3", "enter 3"]
    opened.close()
    assert sorted(names(log)[7:]) == ["leave 3", "leave 8"]
    opened.with_room(3)
    assert names(log)[9:] == ["build 3", "enter 3"]


@pytest.mark.parametrize("engine", [{"device_memory": "1GiB"}, {"weights": "read"}])
def test_a_budget_is_for_one_session(log, engine):
    opened = Sessions(small_config(), {}, "cached", 0, engine=EngineOptions(**engine))
    for sequences in (1, 3):
        opened.with_room(sequences)
    assert names(log)[2:] == ["leave 1", "build 3", "enter 3"]


def test_each_session_has_files_of_its_own(log, tmp_path: Path):
    opened = Sessions(small_config(), {}, "cached", 0, trace=tmp_path)
    for sequences in (1, 3):
        opened.with_room(sequences)
    engines = [event[1] for event in log if not isinstance(event, str)]
    assert [engine.trace.name for engine in engines] == ["batch_1.json", "batch_3.json"]
    assert [engine.memory_plan.name for engine in engines] == ["memory_1.json", "memory_3.json"]


def test_how_many_sequences_run_together():
    assert Sessions(small_config(), {}, "cached", 0).largest == sessions.LARGEST_BATCH
    assert Sessions(small_config(batch=12), {}, "cached", 0).largest == 12
    assert Sessions(small_config(), {}, "cached", 0, 3).largest == 3
    with pytest.raises(UserError, match="max_batch is 0; it must be 1 or greater"):
        Sessions(small_config(), {}, "cached", 0, 0)


def test_one_session_stays_its_owners():
    config, log = small_config(batch=2), []
    one = OneSession(FakeSession(config, log), config, 0)  # type: ignore[arg-type]
    assert one.largest == 2
    assert one.with_room(1) is one.with_room(2)
    one.close()
    assert log == []


def test_memory_is_planned_without_weights():
    config = small_config()
    table = planned_memory(config, "cached", EngineOptions())
    for row in ("image_prefix", "decoder", "peak"):
        assert row in table


def test_what_cannot_be_built_is_named():
    with pytest.raises(UserError, match="unknown scheme 'x'; there are cached and recompute"):
        build_session(small_config(), "x")
    config = small_config()
    config.transformer.layers = 0
    with pytest.raises(UserError, match="layers is 0"):
        build_session(config, "cached")


BATCH = 4
PROMPTS = [[n, *range(40 + 9 * n)] for n in range(BATCH)]


@pytest.fixture
def config_of_four(monkeypatch: pytest.MonkeyPatch) -> MagmaConfig:
    # What the process has besides is not the same from one session to the next.
    monkeypatch.setattr("popxl_torch.executor.placement.anonymous_bytes", lambda: 0)
    return small_config(batch=BATCH, text_tokens=252, image_resolution=64)


def _least(config: MagmaConfig, at_once: int, tmp_path: Path) -> int:
    """The least budget for so many prompts at once."""
    config = deepcopy(config)
    config.transformer.execution.prompts_at_once = at_once
    file = tmp_path / "plan.json"
    session, _ = enter_session(
        config, "cached", EngineOptions(plan_only=True, memory_plan=file), None
    )
    session.__exit__(None, None, None)  # type: ignore[attr-defined]
    plan = json.loads(file.read_text())
    return plan["peak_bytes"] - plan["stored_bytes"]


def test_as_many_prompts_at_once_as_fit(config_of_four: MagmaConfig, tmp_path: Path):
    config = config_of_four
    needed = {at_once: _least(config, at_once, tmp_path) for at_once in (4, 2, 1)}
    assert needed[4] > needed[2] > needed[1]
    for budget, at_once in ((needed[4], 4), (needed[4] - 1, 2), (needed[2] - 1, 1)):
        table = planned_memory(config, "cached", EngineOptions(device_memory=budget))
        assert table.endswith(f"prompts at once: {at_once} of 4")
    with pytest.raises(NoRoomError, match=f"at least {needed[1]:,} are needed"):
        planned_memory(config, "cached", EngineOptions(device_memory=needed[1] - 1))


def test_no_more_than_sixteen_parts_are_tried():
    config = small_config(batch=64)
    ways = _ways_to_read(config, "cached", EngineOptions(device_memory=1))
    tried = [way.transformer.execution.prompts_at_once for way in ways]
    assert tried == [64, 32, 16, 8, 4]


def test_runs_within_a_budget_read_prompts_part_by_part(
    config_of_four: MagmaConfig, tmp_path: Path
):
    config = config_of_four
    weights = model_weights(config, RandomTensors(config, WEIGHTS_SEED, "float32"))
    found = []
    for budget in (None, _least(config, 1, tmp_path)):
        engine = EngineOptions(device_memory=budget)
        session, used = enter_session(config, "cached", engine, weights)
        assert used.transformer.execution.prompts_at_once == (1 if budget else None)
        runs = runs_of(session, used, pad_id=0)
        found.append(np.stack([runs.start(None, PROMPTS), runs.step([1, 2, 3, 4])]))
        session.__exit__(None, None, None)  # type: ignore[attr-defined]
    assert_close(found[1], found[0], FLOAT32)
